"""What `gpu.py` times: whole training steps of a ResNet-50, and parts of one, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

BATCH_SIZE = 128
CLASSES = 1000
SMOOTHING = 0.1
EMA_SMOOTHING = 0.986
"""A half-life of 50 batches."""

ONLY = "only "
"""How names of sides begin that are less than a step."""

Call: TypeAlias = Callable[[], object]
_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Step:
    """A training step.

    Attributes:
        precision: `fp16` scales the loss; `fp32` does without the tensor cores that `tf32` uses.
        blurpool: what is blurred, None for nothing.
        loss: torch's on class probabilities, or Composer's on class numbers that it smooths.
        average: the moving average's update, Composer's or one for all tensors at once, and after how many steps.
        sam: two passes, as Composer's SAM makes them.
        copied: meanwhile the next batch is copied out of pinned memory.
    """

    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp16"
    channels_last: bool = True
    size_px: int = 224
    blurpool: Literal["convolutions", "convolutions and max pool"] | None = None
    loss: Literal["torch", "composer"] = "torch"
    average: Literal["composer", "foreach"] | None = None
    average_every: int = 1
    sam: bool = False
    copied: bool = False
    compiled: bool = False

    def __call__(self) -> Call:
        """Build the network and return the step."""
        return Training(self).step


@dataclass(frozen=True)
class Side:
    """What is timed: `make` returns the call. `keep` does not make it anew in each round."""

    make: Callable[[], Call]
    benchmark: bool = True
    keep: bool = False


class Training:
    """A network with its optimizer, and a step of it."""

    def __init__(self, what: Step) -> None:
        import torch
        from composer.algorithms.blurpool import apply_blurpool
        from composer.algorithms.ema.ema import EMAParameters
        from composer.algorithms.sam import SAMOptimizer
        from torch import nn

        from imagenet_mds_train.model.classifier import Classifier
        from imagenet_mds_train.model.resnet import resnet

        self.what = what
        with torch.device("cuda"):
            self.model = Classifier(resnet(50, CLASSES), CLASSES).train()
            if what.blurpool:
                apply_blurpool(self.model.network, replace_maxpools=what.blurpool.endswith("max pool"))
        self.model.to("cuda", memory_format=torch.channels_last if what.channels_last else torch.contiguous_format)
        self.dtype = getattr(torch, _DTYPES.get(what.precision, "float32"))
        self.scaler = torch.amp.GradScaler("cuda", enabled=what.precision == "fp16")
        self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        if what.sam:
            self.optimizer = SAMOptimizer(self.optimizer)
        self.images = random_images(what.size_px)
        if not what.channels_last:  # whatever the weights' format, layers keep the one that their input has
            self.images = self.images.contiguous()
        self.labels = torch.randint(CLASSES, (BATCH_SIZE,), device="cuda")
        hot = nn.functional.one_hot(self.labels, CLASSES).float()
        self.probabilities = (1 - SMOOTHING) * hot + SMOOTHING / CLASSES
        self.pinned = self.images.cpu().pin_memory() if what.copied else None
        self.copies = torch.cuda.Stream()
        self.network: nn.Module = torch.compile(self.model.network) if what.compiled else self.model.network  # type: ignore[assignment] # compile returns a module, and is annotated otherwise
        average = EMAParameters(self.model) if what.average == "composer" else None
        self.update: Call | None = average_update(what.average, self.model, average) if what.average else None
        self.saved_bytes: int | None = None
        self.steps = 0

    def loss(self) -> Any:
        """Run the forward pass."""
        import torch

        before = torch.cuda.memory_allocated()
        with torch.autocast("cuda", self.dtype, enabled=self.what.precision in _DTYPES):
            logits = self.network(torch.addcmul(self.model.shift, self.images, self.model.scale))
            loss = loss_of(self.what.loss, logits, self.labels, self.probabilities)
        self.saved_bytes = torch.cuda.memory_allocated() - before
        return loss

    def step(self) -> None:
        """Train on the batch."""
        import torch

        if self.pinned is not None:
            with torch.cuda.stream(self.copies):
                self.pinned.to("cuda", non_blocking=True)
        if self.what.sam:
            self.optimizer.step(self._closure)
        else:
            self.optimizer.zero_grad()
            self.scaler.scale(self.loss()).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.steps += 1
        if self.update and self.steps % self.what.average_every == 0:
            self.update()

    def _closure(self, **kwargs: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss


def random_images(size_px: int) -> Any:
    """Return a batch as the loader makes it, on the device: uint8, channels last."""
    import torch

    images = torch.randint(256, (BATCH_SIZE, size_px, size_px, 3), dtype=torch.uint8, device="cuda")
    return images.permute(0, 3, 1, 2)


def average_update(how: str, model: Any, average: Any) -> Call:
    """Return the update of a moving average of a model."""
    from composer.algorithms.ema import compute_ema

    from imagenet_mds_train.recipe.average import update_average

    if how == "composer":
        return partial(compute_ema, model, average, EMA_SMOOTHING)
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    averages = [tensor.clone() for tensor in tensors]
    return partial(update_average, averages, tensors, 1 - EMA_SMOOTHING)


def loss_of(how: str, logits: Any, labels: Any, probabilities: Any) -> Any:
    """Return the loss of logits (samples, classes), of class numbers (samples) or probabilities (samples, classes)."""
    from composer.algorithms.label_smoothing import smooth_labels
    from composer.loss import soft_cross_entropy
    from torch.nn.functional import cross_entropy

    if how == "composer":
        return soft_cross_entropy(logits, smooth_labels(logits, labels, SMOOTHING))
    if how == "numbers":
        return cross_entropy(logits, labels, label_smoothing=SMOOTHING)
    return cross_entropy(logits, probabilities)


def _average(how: str) -> Call:
    """Only the update of the average."""
    from composer.algorithms.ema.ema import EMAParameters

    model = Training(Step()).model
    return average_update(how, model, EMAParameters(model))


def _loss(how: str) -> Call:
    """Only the loss and its gradient."""
    import torch

    logits = torch.randn(BATCH_SIZE, CLASSES, device="cuda", dtype=torch.float16, requires_grad=True)
    labels = torch.randint(CLASSES, (BATCH_SIZE,), device="cuda")
    probabilities = torch.softmax(torch.randn(BATCH_SIZE, CLASSES, device="cuda"), 1)

    def call() -> None:
        with torch.autocast("cuda", torch.float16):
            loss = loss_of(how, logits, labels, probabilities)
        loss.backward()

    return call


def _copy(pinned: bool) -> Call:
    """Only the copy of a batch to the device."""
    images = random_images(224).cpu()
    if pinned:
        images = images.pin_memory()
    return lambda: images.to("cuda", non_blocking=True)


def _jitter(most: float, hue: float) -> Call:
    """Only ColorJitter of a batch."""
    from imagenet_mds.seeds import SampleRandom, sample_seed
    from imagenet_mds_train.augment.jitter import draw_jitter, jitter, jitter_rows
    from imagenet_mds_train.config.augment import ColorJitterConfig

    config = ColorJitterConfig(brightness=most, contrast=most, saturation=most, hue=hue)
    rows = jitter_rows([draw_jitter(SampleRandom(sample_seed(0, 0, at)), config) for at in range(BATCH_SIZE)])
    return partial(jitter, random_images(224), rows)


STEPS: dict[str, Step] = {
    "fp16, channels last": Step(),
    "fp32, NCHW": Step("fp32", channels_last=False),
    "tf32, NCHW": Step("tf32", channels_last=False),
    "tf32, channels last": Step("tf32"),
    "fp16, NCHW": Step("fp16", channels_last=False),
    "bf16, NCHW": Step("bf16", channels_last=False),
    "bf16, channels last": Step("bf16"),
    "176 px": Step(size_px=176),
    "128 px": Step(size_px=128),
    "112 px": Step(size_px=112),
    "BlurPool, convolutions": Step(blurpool="convolutions"),
    "BlurPool, convolutions and max pool": Step(blurpool="convolutions and max pool"),
    "BlurPool, convolutions and max pool, bf16": Step("bf16", blurpool="convolutions and max pool"),
    "loss of Composer": Step(loss="composer"),
    "EMA of Composer": Step(average="composer"),
    "EMA foreach": Step(average="foreach"),
    "EMA foreach, every tenth": Step(average="foreach", average_every=10),
    "EMA of Composer, 128 px": Step(size_px=128, average="composer"),
    "EMA foreach, every tenth, 128 px": Step(size_px=128, average="foreach", average_every=10),
    "SAM, bf16": Step("bf16", sam=True),
    "with a copy": Step(copied=True),
    "compiled": Step(compiled=True),
    "compiled, 128 px": Step(size_px=128, compiled=True),
    "compiled, BlurPool, convolutions and max pool": Step(blurpool="convolutions and max pool", compiled=True),
}
"""Steps by name. What a name does not say is as in the first."""

_NO_BENCHMARK = ("fp16, channels last", "fp16, NCHW", "bf16, channels last", "176 px", "128 px", "112 px")

SIDES: dict[str, Side] = {
    **{name: Side(step, keep=step.compiled) for name, step in STEPS.items()},
    **{f"{name}, no cudnn.benchmark": Side(STEPS[name], benchmark=False) for name in _NO_BENCHMARK},
    **{f"only EMA {how}": Side(partial(_average, how)) for how in ("composer", "foreach")},
    "only loss composer": Side(partial(_loss, "composer")),
    "only loss torch, probabilities": Side(partial(_loss, "torch")),
    "only loss torch, class numbers": Side(partial(_loss, "numbers")),
    "only jitter 0.2": Side(partial(_jitter, 0.2, 0.0)),
    "only jitter 0.2 and hue 0.1": Side(partial(_jitter, 0.2, 0.1)),
    "only copy, pinned": Side(partial(_copy, True)),
    "only copy, pageable": Side(partial(_copy, False)),
}
