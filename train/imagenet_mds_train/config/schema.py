"""The training configuration: one tree of frozen, strictly typed models.

Everything that changes a result is in this tree; paths and operations are options of the command. An unknown key is an
error that names the nearest known one.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from imagenet_mds_train.config.augment import AugmentConfig
from imagenet_mds_train.config.data import DataConfig
from imagenet_mds_train.config.recipe import AlgorithmsConfig, Loss, ModelConfig, OptimizerConfig, ScheduleConfig
from imagenet_mds_train.config.section import NonNegative, Positive, PositiveFloat, Section


class EvaluationConfig(Section):
    """Validation: the shorter side of each image is resized to `resize_px`, then the centre `crop_px` is cropped."""

    resize_px: Annotated[int, Field(ge=8)] = 256
    """The shorter side of the resized image, in pixels."""

    crop_px: Annotated[int, Field(ge=8)] = 224
    """The part of it that the network sees, in pixels on each side."""

    resize: Literal["reference", "antialias", "linear"] = "reference"
    """`reference` is exactly Pillow's result; `antialias` and `linear` use training's fast decoder."""

    device_batch_size: Positive = 128
    """Images of one rank's validation batch."""

    workers_per_rank: NonNegative | Literal["auto"] = "auto"
    """Loader processes of each rank in validation; `auto` as in training."""

    every_epochs: Positive | None = 1
    """Epochs between validations, and one at the end; null never validates."""

    last_epochs: NonNegative = 0
    """The last epochs that are each validated, whatever `every_epochs` says."""

    subset: Positive | None = None
    """Validate on this many images, the first of the split, which have the classes in equal share; null is all of
    them. The command `eval` measures on all of them in any case."""

    @model_validator(mode="after")
    def _crop_fits(self) -> "EvaluationConfig":
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px {self.crop_px} is larger than resize_px {self.resize_px}")
        return self

    def is_due(self, finished: int, epochs: int) -> bool:
        """Whether a run of `epochs` validates after `finished` of them."""
        if self.every_epochs is None:
            return False
        return finished % self.every_epochs == 0 or finished == epochs or finished > epochs - self.last_epochs


class CheckpointConfig(Section):
    """Checkpoints: how often a run saves, and how many are kept."""

    every_seconds: PositiveFloat | None = 300.0
    """Seconds of training between checkpoints, beside those at the end of each epoch; null saves by batches and epochs
    alone. A run that has been interrupted saves more often, by Young's formula."""

    every_batches: Positive | None = None
    """Batches between checkpoints, beside the others; null for none."""

    keep: Positive = 2
    """The last checkpoints that are kept; two are kept in any case."""

    patience_seconds: PositiveFloat = 900.0
    """How long S3 may refuse the checkpoints of a run with --save s3://... before the run ends."""


class SystemConfig(Section):
    """How the run computes."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` is a GPU where there is one; `gpu` refuses to start without."""

    precision: Literal["auto", "fp32", "amp_fp16", "amp_bf16"] = "auto"
    """`auto` is fp16 on a GPU and fp32 on a CPU."""

    deterministic: bool = False
    """Bit-identical weights with the same number of ranks and threads, at the cost of speed; the command's
    --deterministic sets it."""

    device_microbatch_size: Positive | Literal["auto"] | None = None
    """Split a rank's batch into parts of this many images, to fit its memory. BatchNorm then sees the parts. `auto` is
    the largest that fits the GPU when the run is first started, which then stays; on a CPU it is the whole batch."""

    activation_checkpointing: bool = False
    """Compute the activations of the residual blocks again in the backward pass: half the memory, a third more time,
    and the same weights."""

    compile: bool = False
    """Compile the network with torch.compile: minutes at the first start, for each training size, and fewer kernels
    afterwards. Weights differ in their last bits."""

    dist_timeout_seconds: Positive = 600
    """How long ranks wait for each other before they give up."""

    stop_seconds: Positive = 90
    """How long the ranks may take to stop and save after a request or a notice, before they are killed. A spot notice
    comes two minutes ahead."""

    hang_seconds: Positive | None = 100
    """A run in which no rank makes progress for this long hangs, and is ended, with a cause and the stacks of all
    threads. Null never ends it."""

    start_seconds: Positive = 1800
    """The same until the first batch of a start, where the network is compiled, and while a checkpoint is saved."""


class WandBConfig(Section):
    """One run there goes over all starts of a run here, by an id in its folder."""

    project: str = "imagenet-mds"
    """The project there."""

    entity: str | None = None
    """The user or team there; null is the default of the account."""

    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run's folder, for `wandb sync`."""


class LoggingConfig(Section):
    """How often the run reports."""

    every_batches: Positive = 20
    """Batches between lines of the log."""

    print_every_batches: Positive = 20
    """Batches between lines on the screen."""

    dollars_per_hour: PositiveFloat | None = None
    """Price of the machine, with which the plan, the screen and the summary say what the run costs."""

    wandb: WandBConfig | None = None
    """Weights & Biases, beside the log."""

    tensorboard: bool = False
    """Write the files of TensorBoard into the run's folder, beside the log."""


class TrainConfig(Section):
    """One training run."""

    recipe: str | None = None
    """The shipped recipe that fills in what the file leaves out: classic, mild, medium or hot."""

    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 17
    """Seed for initialisation and augmentation, of 32 bits as NumPy takes it; the sample order has a seed of its own,
    `data.order.shuffle_seed`."""

    ranks: Positive = 1
    """Processes, one per GPU; the command's --ranks overrides it."""

    global_batch_size: Positive
    """Images of one optimizer step, over all ranks."""

    data: DataConfig = DataConfig()
    """What is read, and how."""

    augment: AugmentConfig = AugmentConfig()
    """What training does to each image."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """Validation."""

    model: ModelConfig = ModelConfig()
    """The network."""

    loss: Loss = "cross_entropy"
    """What is minimized. `binary_cross_entropy` is a yes or no for each class (Wightman et al. 2021), summed over the
    classes; the output's bias then starts at minus the logarithm of their number."""

    optimizer: OptimizerConfig
    """The optimizer."""

    schedule: ScheduleConfig
    """Epochs and learning rate."""

    algorithms: AlgorithmsConfig = AlgorithmsConfig()
    """Algorithms, each a switch."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""

    system: SystemConfig = SystemConfig()
    """How the run computes."""

    logging: LoggingConfig = LoggingConfig()
    """How often the run reports."""

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainConfig":
        if self.global_batch_size % self.ranks:
            raise ValueError(f"global_batch_size {self.global_batch_size} does not divide over {self.ranks} ranks")
        micro = self.device_microbatch_size
        if self.device_batch_size % micro:
            raise ValueError(
                f"system.device_microbatch_size {micro} does not divide a rank's batch of {self.device_batch_size}"
            )
        self.augment.refuse_wrong_steps(self.schedule.epochs)
        return self

    @property
    def device_batch_size(self) -> int:
        """Images that one rank contributes to a step."""
        return self.global_batch_size // self.ranks

    @property
    def device_microbatch_size(self) -> int:
        """Images of a rank's batch that are computed at a time; its whole batch as long as `auto` is not settled."""
        size = self.system.device_microbatch_size
        return min(size, self.device_batch_size) if isinstance(size, int) else self.device_batch_size

    @property
    def lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.optimizer.scaled_lr(self.global_batch_size)

    def size_at(self, epoch: int) -> int:
        """The training size of an epoch, counted from 0, in pixels on each side."""
        return self.augment.size_at(epoch, self.schedule.epochs)

    def for_sweep(self) -> "TrainConfig":
        """The configuration of a learning-rate sweep: images keep the size of the first epoch however many epochs the
        sweep takes, and nothing is validated."""
        return self.model_copy(
            update={
                "augment": self.augment.model_copy(update={"size_px": self.size_at(0), "progressive": None}),
                "evaluation": self.evaluation.model_copy(update={"every_epochs": None}),
            }
        )

    def what_is_fixed(self) -> dict[str, Any]:
        """What must not change within a run: everything that decides the weights, and nothing that only decides where
        and how fast it runs."""
        return self.model_dump(
            mode="json",
            include={
                "seed": True,
                "global_batch_size": True,
                "data": {"subset": True, "order": True},
                "augment": True,
                "model": True,
                "loss": True,
                "optimizer": True,
                "schedule": True,
                "algorithms": True,
                # A batch in parts has other BatchNorm statistics.
                "system": {"device_microbatch_size": True},
            },
        )
