"""For each kind: its groups, and the compacted function beside the masked one on random inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import prune_rl
from experiments.architectures.layers import BATCH, SIDE, TOKENS, Net
from experiments.architectures.sequences import bert, gpt, gru, llama
from experiments.architectures.vision import (
    convnext,
    densenet,
    diffusion,
    efficientnet,
    grouped,
    inception,
    mobilenet,
    pyramid,
    raft,
    resnet,
    segmentation,
    shufflenet,
    squeezenet,
    swin,
    unet,
    vgg,
    vit,
    yolo,
)


def _image(seed: int = 0, channels: int = 3) -> Any:
    return np.random.default_rng(seed).normal(size=(BATCH, SIDE, SIDE, channels)).astype(np.float32)


WORDS = np.random.default_rng(0).integers(0, 11, (BATCH, TOKENS))
SERIES = np.random.default_rng(0).normal(size=(BATCH, TOKENS, 4)).astype(np.float32)
COUNTED = {"keep_counts": True}
# The network, its input, options of find_groups, and what Torch-Pruning says of the kind.
LISTED, NOT = "yes", "no"
KINDS: dict[str, tuple[Callable[[Net, Any], Any], Any, dict[str, bool], str]] = {
    "AlexNet, VGG": (vgg, _image(), {}, LISTED),
    "ResNet, Wide ResNet": (resnet, _image(), {}, LISTED),
    "ResNeXt, RegNet (whole groups)": (grouped, _image(), {}, LISTED),
    "ResNeXt, RegNet (channels of every group)": (grouped, _image(), {"equal_channels": True}, LISTED),
    "DenseNet": (densenet, _image(), {}, LISTED),
    "SqueezeNet": (squeezenet, _image(), {}, LISTED),
    "GoogLeNet, Inception": (inception, _image(), {}, LISTED),
    "MNASNet, MobileNet v2": (mobilenet, _image(), {}, LISTED),
    "MobileNet v3, EfficientNet": (efficientnet, _image(), {}, LISTED),
    "ShuffleNet v2": (shufflenet, _image(), {}, LISTED),
    "ConvNeXt": (convnext, _image(), {}, LISTED),
    "ViT": (vit, _image(), {}, LISTED),
    "Swin": (swin, _image(), {}, "HF's; not Torchvision's"),
    "FCN, DeepLab v3, LR-ASPP": (segmentation, _image(), {}, LISTED),
    "Faster and Mask R-CNN, FCOS, RetinaNet (pyramid and heads)": (pyramid, _image(), {}, LISTED),
    "YOLO v7, v8": (yolo, _image(), {}, LISTED),
    "RAFT": (raft, np.stack([_image(), _image(1)]), {}, NOT),
    "U-Net": (unet, _image(), {}, "not listed"),
    "Diffusion U-Net": (diffusion, _image(), {}, LISTED),
    "GPT": (gpt, WORDS, {}, "not listed"),
    "Llama": (llama, WORDS, COUNTED, LISTED),
    "BERT": (bert, WORDS, {}, LISTED),
    "GRU": (gru, SERIES, {}, LISTED),
}


def row(kind: str) -> dict[str, Any]:
    """What is found in one kind: sizes, shares, the error of compaction, and what stays whole."""
    forward, x, options, theirs = KINDS[kind]
    net = Net(forward, x)
    params = net.made
    groups = prune_rl.find_groups(net, params, x, **options)
    rng = np.random.default_rng(1)
    masks = {name: rng.permutation(group.size) >= group.size // 2 for name, group in groups.items()}
    small = prune_rl.compact(groups, params, masks)
    small_fn = prune_rl.compact_function(net, groups, params, masks)
    ours, expected = jax.jit(
        lambda: (small_fn(small, x), net(prune_rl.apply_masks(groups, params, masks), x)),
        compiler_options={"xla_backend_optimization_level": 0},
    )()
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True))
    scale = max(float(jnp.abs(b).max()) for _, b in pairs)
    whole = {reason.split(" (as in")[0] for _, reason in groups.rejected} - {"is an output of fn"}
    return {
        "groups": len(groups),
        "neurons": sum(group.size for group in groups.values()),
        "weights left": prune_rl.count(groups, params, masks).weights,
        "error": max(float(jnp.abs(a - b).max()) for a, b in pairs) / scale,
        "whole": whole,
        "rejected": groups.rejected,
        "theirs": theirs,
    }


def table() -> str:
    """The rows in Markdown."""
    columns = (
        "kind",
        "Torch-Pruning",
        "groups",
        "neurons",
        "weights left",
        "relative error",
        "what stays whole",
    )
    lines = [f"| {' | '.join(columns)} |", "|---|---|---:|---:|---:|---:|---|"]
    for kind in KINDS:
        found = row(kind)
        left, whole = found["weights left"], "; ".join(sorted(found["whole"]))
        cells = (
            kind,
            found["theirs"],
            found["groups"],
            found["neurons"],
            f"{100 * left.kept / left.total:.0f} %",
            f"{found['error']:.0e}",
            whole,
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
