#!/usr/bin/env bash
# Makes an instance ready and starts its work as a systemd unit. `imagenet-mds aws` puts lines before it that export:
#
#   IMAGENET_MDS_NAME         the auto scaling group
#   IMAGENET_MDS_BUCKET       the bucket
#   IMAGENET_MDS_LAUNCH       key of what to do, launches/RUN.json
#   IMAGENET_MDS_CODE         key of the program's archive: app/, requirements.lock, imagenet-mds.service
#   IMAGENET_MDS_CODE_SHA256  its checksum
#   IMAGENET_MDS_DATA         none, read-only (a second EBS volume holds the dataset) or fill (a blank one is to hold it)
#   AWS_REGION
#
# Run again, it does only what is missing. `boot` does what a reboot undoes; the unit runs that before its command.
# `failed` ends the machine; systemd runs that when the unit gives up. IMAGENET_MDS_ROOT is a prefix of all paths, for tests.
set -euo pipefail
shopt -s inherit_errexit

readonly ROOT="${IMAGENET_MDS_ROOT:-}"
readonly LOG="$ROOT/var/log/imagenet-mds-setup.log"
readonly OPT="$ROOT/opt/imagenet-mds"
readonly VENV="$OPT/.venv"
readonly NVME="$ROOT/mnt/nvme"
readonly DATA="$ROOT/data"
readonly SELF="$ROOT/usr/local/sbin/imagenet-mds-setup"
readonly UNITS="$ROOT/etc/systemd/system"
readonly VARIABLES=(IMAGENET_MDS_NAME IMAGENET_MDS_BUCKET IMAGENET_MDS_LAUNCH IMAGENET_MDS_CODE IMAGENET_MDS_CODE_SHA256
  IMAGENET_MDS_DATA AWS_REGION)

export AWS_RETRY_MODE=adaptive AWS_MAX_ATTEMPTS=10 DEBIAN_FRONTEND=noninteractive AWS_REGION="${AWS_REGION:-}"
# cloud-init sets none, and the caches of pip and uv lie there.
export HOME="${HOME:-/root}"
STEP="start"
TEE=""
VOLUME=""
HOME_FOLDER="$ROOT/var/lib/imagenet-mds"

say() { printf '%s imagenet-mds setup: %s\n' "$(date -u +%FT%TZ)" "$1"; }

give_up() {
  say "$1"
  exit 1
}

step() {
  STEP="$1"
  say "$1"
}

# ---- the log, and the end of the machine

begin_log() {
  mkdir -p "${LOG%/*}"
  exec 3>&1 4>&2
  exec > >(exec tee -a "$LOG") 2>&1
  TEE=$!
}

end_log() {
  [[ -n "$TEE" ]] || return 0
  exec >&3 2>&4
  wait "$TEE" || true
  TEE=""
}

stopping() { [[ "$(systemctl is-system-running 2>/dev/null)" == stopping ]]; }

# Only an instance that is in service speaks for its group: one that is being replaced would end its successor, and one
# that fills a volume is not in the group.
may_empty_group() {
  local instance state
  instance="$(cat "$ROOT/var/lib/cloud/data/instance-id" 2>/dev/null)" || return 0
  state="$(timeout 120 aws autoscaling describe-auto-scaling-instances --region "$AWS_REGION" --instance-ids "$instance" \
    --query 'AutoScalingInstances[0].LifecycleState' --output text)" || return 0
  [[ "$state" != None && "$state" != Terminat* && "$state" != Detach* ]]
}

end_machine() {
  set +e
  local bucket="${IMAGENET_MDS_BUCKET:-}" name="${IMAGENET_MDS_NAME:-}" run="${IMAGENET_MDS_LAUNCH:-unknown}"
  say "$1"
  end_log
  run="${run##*/}"
  timeout 120 aws s3 cp --only-show-errors --region "$AWS_REGION" "$LOG" "s3://$bucket/launches/${run%.json}.setup.log" ||
    say "the log cannot be uploaded"
  if may_empty_group; then
    timeout 300 aws autoscaling set-desired-capacity --region "$AWS_REGION" --auto-scaling-group-name "$name" \
      --desired-capacity 0 || say "the group $name cannot be set to 0: it will start another instance"
  fi
  shutdown -h now
}

ended() {
  local status=$?
  trap - EXIT
  [[ $status -ne 0 ]] || return 0
  # The machine is being stopped from outside, by AWS or by a person: nothing here is broken, and the group stays as it is.
  if [[ $status -eq 129 || $status -eq 130 || $status -eq 143 ]] || stopping; then
    say "interrupted in step: $STEP"
  else
    end_machine "failed with status $status in step: $STEP"
  fi
  exit "$status"
}

# ---- steps

check_variables() {
  local variable
  for variable in "${VARIABLES[@]}"; do
    [[ "${!variable:-}" =~ ^[A-Za-z0-9._/-]+$ ]] || give_up "$variable is missing or has other characters than A-Z a-z 0-9 . _ / -"
  done
  [[ "$IMAGENET_MDS_DATA" =~ ^(none|read-only|fill)$ ]] || give_up "IMAGENET_MDS_DATA must be none, read-only or fill"
}

install_packages() {
  timeout 900 apt-get -qq -o DPkg::Lock::Timeout=600 update
  timeout 900 apt-get -qq -o DPkg::Lock::Timeout=600 -y install "$@"
}

need() { command -v "$1" >/dev/null || install_packages "$2"; }

# An update of NVIDIA's driver under a training ends it.
stop_updates() { systemctl disable --now apt-daily.timer apt-daily-upgrade.timer || true; }

# Names of the whole disks of a model, one a line.
disks_of_model() {
  local listing
  listing="$(lsblk --nodeps --noheadings --paths --output NAME,MODEL)"
  awk -v model="$1" 'index($0, model) { print $1 }' <<<"$listing"
}

mount_nvme() {
  local device listing disks=()
  mountpoint --quiet "$NVME" && return
  mkdir -p "$NVME"
  # AWS's deep learning image makes one striped volume of all instance stores by itself.
  systemctl start dlami-nvme.service 2>/dev/null || true
  if mountpoint --quiet "$ROOT/opt/dlami/nvme"; then
    mount --bind "$ROOT/opt/dlami/nvme" "$NVME"
    return
  fi
  if device="$(blkid --cache-file /dev/null --label imagenet-nvme)"; then
    mount --options noatime "$device" "$NVME"
    return
  fi
  listing="$(disks_of_model "Amazon EC2 NVMe Instance Storage")"
  [[ -n "$listing" ]] || { say "no instance store" && return; }
  mapfile -t disks <<<"$listing"
  device="${disks[0]}"
  if [[ ${#disks[@]} -gt 1 ]]; then
    need mdadm mdadm
    device=/dev/md/imagenet-nvme
    mdadm --create "$device" --run --level=0 --raid-devices=${#disks[@]} "${disks[@]}"
    udevadm settle || true
  fi
  mkfs.ext4 -q -F -m 0 -E nodiscard -L imagenet-nvme "$device"
  mount --options noatime "$device" "$NVME"
}

# Names the EBS disk of which nothing is mounted, if one is there.
second_volume() {
  local disk mounted listing found=()
  listing="$(disks_of_model "Amazon Elastic Block Store")"
  for disk in $listing; do
    mounted="$(lsblk --noheadings --output MOUNTPOINT "$disk")"
    [[ -n "${mounted//[[:space:]]/}" ]] || found+=("$disk")
  done
  [[ ${#found[@]} -le 1 ]] || give_up "nobody knows which EBS volume is meant: ${found[*]}"
  VOLUME="${found[0]:-}"
}

mount_data() {
  local attempt label status=0
  [[ "$IMAGENET_MDS_DATA" != none ]] || return 0
  mountpoint --quiet "$DATA" && return
  for attempt in {1..60}; do
    second_volume
    [[ -z "$VOLUME" ]] || break
    [[ $attempt -lt 60 ]] || give_up "no second EBS volume is attached"
    sleep 5
  done
  mkdir -p "$DATA"
  if [[ "$IMAGENET_MDS_DATA" == read-only ]]; then
    mount --options ro,noatime "$VOLUME" "$DATA"
    return
  fi
  # 2 means that there is nothing on the disk, neither a file system nor partitions.
  blkid --probe "$VOLUME" >/dev/null || status=$?
  if [[ $status -eq 2 ]]; then
    mkfs.ext4 -q -F -m 0 -L imagenet-mds "$VOLUME"
  else
    label="$(blkid --probe --output value --match-tag LABEL "$VOLUME")" || true
    [[ "$label" == imagenet-mds ]] || give_up "$VOLUME is neither blank nor of imagenet-mds: nothing was formatted"
  fi
  mount --options noatime "$VOLUME" "$DATA"
}

make_user() {
  mountpoint --quiet "$NVME" && HOME_FOLDER="$NVME/imagenet-mds"
  id imagenet-mds >/dev/null 2>&1 ||
    useradd --system --user-group --no-create-home --home-dir "$HOME_FOLDER" --shell /usr/sbin/nologin imagenet-mds
  mkdir -p "$HOME_FOLDER/.cache"
  chown imagenet-mds: "$HOME_FOLDER" "$HOME_FOLDER/.cache"
  if mountpoint --quiet "$NVME"; then chown imagenet-mds: "$NVME"; fi
  if [[ "$IMAGENET_MDS_DATA" == fill ]]; then chown imagenet-mds: "$DATA"; fi
}

fetch_code() {
  local archive="$OPT/code.tar.gz" part
  mkdir -p "$OPT"
  timeout 900 aws s3 cp --only-show-errors --region "$AWS_REGION" "s3://$IMAGENET_MDS_BUCKET/$IMAGENET_MDS_CODE" "$archive"
  sha256sum --check --status <<<"$IMAGENET_MDS_CODE_SHA256  $archive" ||
    give_up "s3://$IMAGENET_MDS_BUCKET/$IMAGENET_MDS_CODE does not have the sha256 $IMAGENET_MDS_CODE_SHA256"
  rm -rf "$OPT/code.new"
  mkdir "$OPT/code.new"
  tar --extract --gzip --no-same-owner --file "$archive" --directory "$OPT/code.new"
  for part in app requirements.lock imagenet-mds.service; do
    [[ -e "$OPT/code.new/$part" ]] || give_up "the archive has no $part"
  done
  rm -rf "$OPT/code"
  mv "$OPT/code.new" "$OPT/code"
}

find_python() {
  local name
  for name in python3.11 python3.12 python3.10 python3; do
    if "$name" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  return 1
}

make_environment() {
  local lock="$OPT/code/requirements.lock" python packages
  if ! cmp --silent "$lock" "$VENV/.complete"; then
    if ! python="$(find_python)"; then
      install_packages python3-venv
      python="$(find_python)" || give_up "the image has no Python 3.10, 3.11 or 3.12"
    fi
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
    timeout 600 "$VENV/bin/pip" install --quiet uv
    # The user of the unit cannot write here: what is not compiled now is compiled at each start.
    timeout 2400 "$VENV/bin/uv" pip sync --quiet --compile-bytecode --python "$VENV/bin/python" --require-hashes "$lock"
    cp "$lock" "$VENV/.complete"
  fi
  packages="$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  echo "$OPT/code/app" >"$packages/imagenet-mds.pth"
  "$VENV/bin/python" -m compileall -q "$OPT/code/app"
}

write_files() {
  local variable launcher="$ROOT/usr/local/bin/imagenet-mds"
  mkdir -p "${launcher%/*}" "${SELF%/*}" "$UNITS"
  for variable in "${VARIABLES[@]}"; do
    echo "$variable=${!variable}"
  done >"$ROOT/etc/imagenet-mds.env"
  # boto3 does not read AWS_REGION.
  cat >>"$ROOT/etc/imagenet-mds.env" <<EOF
AWS_DEFAULT_REGION=$AWS_REGION
HOME=$HOME_FOLDER
XDG_CACHE_HOME=$HOME_FOLDER/.cache
EOF
  cat >"$launcher" <<EOF
#!/bin/sh
exec $VENV/bin/python -m imagenet_mds "\$@"
EOF
  chmod 755 "$launcher"
  [[ "$0" -ef "$SELF" ]] || install --mode=700 "$0" "$SELF"
  install --mode=644 "$OPT/code/imagenet-mds.service" "$UNITS/imagenet-mds.service"
  cat >"$UNITS/imagenet-mds-failed.service" <<EOF
[Unit]
Description=The end of a machine whose training cannot go on

[Service]
Type=oneshot
EnvironmentFile=/etc/imagenet-mds.env
ExecStart=$SELF failed
EOF
}

prepare_gpus() {
  local names
  names="$(nvidia-smi --query-gpu=name --format=csv,noheader)" || { say "no GPU answers" && return; }
  say "GPUs: ${names//$'\n'/, }"
  # The unit may not run this helper of NVIDIA's, which is setuid.
  nvidia-modprobe -u -c=0 || true
  # Fixed clocks keep a T4's speed even. A training runs without them too.
  if [[ "$names" =~ (^|[[:space:]])T4($|[[:space:]]) ]]; then
    if ! { nvidia-smi -pm 1 && nvidia-smi -ac 5001,1590; }; then say "the clocks of the T4 are not fixed"; fi
  fi
}

start_unit() {
  systemctl daemon-reload
  systemctl enable imagenet-mds.service
  systemctl start imagenet-mds.service
}

# ---- what it is asked for

setup() {
  trap ended EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  begin_log
  step "check the variables"
  check_variables
  step "look for tools"
  need aws awscli
  stop_updates
  step "mount the instance stores"
  mount_nvme
  step "mount the data ($IMAGENET_MDS_DATA)"
  mount_data
  step "make the user"
  make_user
  step "fetch the program"
  fetch_code
  step "install Python's packages"
  make_environment
  step "write the files"
  write_files
  step "prepare the GPUs"
  prepare_gpus
  step "start the unit"
  start_unit
  step "done"
}

boot() {
  mount_nvme
  mount_data
  prepare_gpus
}

failed() {
  stopping && return
  begin_log
  journalctl --unit imagenet-mds.service --no-pager --lines 2000 || true
  end_machine "the unit imagenet-mds.service has failed"
}

case "${1:-setup}" in
setup | boot | failed) "${1:-setup}" ;;
*)
  echo "setup.sh takes no argument, boot or failed" >&2
  exit 2
  ;;
esac
