"""Makes `python -m imagenet_mds` the same as the command `imagenet-mds`."""

from imagenet_mds.cli import main

if __name__ == "__main__":
    main()
