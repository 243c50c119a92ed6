"""Train a network: the command that made the shipped weights.

    python -m engine.models.train --network resnet20 --data digits --out weights.safetensors
    python -m engine.models.train --network mine.networks:small --data shop --out shop.safetensors
    python -m engine.models.train --network convnext-pico-cifar --data cifar10 --threads 2 \\
        --out convnext.safetensors

A GPU is used where torch finds one. Killed and started again, it goes on after the last epoch.
Progress goes to standard error. Beside the weights stands a JSON file with the accuracy, the
command, the recipe and everything else that is needed to make them again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from engine import models
from engine.compress.recipe import Recipe
from engine.events import AnyEvent, Noted, Reporter, Scored

COMMON = {"epochs": 40, "lr": 0.1, "nesterov": True, "weight_decay": 5e-4}
"""How networks are trained that have no recipe of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (0 done, 1 failed, 130 interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        found = _train(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from its checkpoint", file=sys.stderr)
        return 130
    command = shlex.join(["python", "-m", "engine.models.train", *given])
    record = {"command": command, **found}
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))
    return 0


def _train(options: argparse.Namespace) -> dict[str, object]:
    import torch
    from safetensors.torch import save

    from engine import data
    from engine.compress.evaluate import accuracy
    from engine.compress.finetune import finetune

    if not options.out.parent.is_dir():
        raise ValueError(f"{options.out.parent}: there is no such folder to write to")
    if models.recognise(options.network) == "onnx":
        raise ValueError(f"{options.network}: an ONNX file is trained already")
    dataset = data.load(options.data, options.seed, models.image_size(options.network))
    torch.manual_seed(options.seed)
    model = models.load(
        options.network,
        len(dataset.classes),
        example_shape=dataset.test_images[:2].shape,
        mean=dataset.mean,
        std=dataset.std,
        folder=Path.cwd(),
    )
    recipe = _recipe(options)
    checkpoint = options.out.with_suffix(".checkpoint")
    result = finetune(
        model, dataset, recipe, reporter=Reporter("train", _say), checkpoint=checkpoint
    )
    options.out.write_bytes(save({n: t.contiguous() for n, t in model.state_dict().items()}))
    checkpoint.unlink(missing_ok=True)
    return {
        "network": options.network,
        "data": str(options.data),
        "seed": options.seed,
        "test_accuracy": round(accuracy(model, dataset.test_images, dataset.test_labels), 4),
        "selection_accuracy": round(result.accuracy, 4),
        "best_epoch": result.best_epoch,
        "classes": len(dataset.classes),
        "test_images": len(dataset.test_labels),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "recipe": asdict(recipe),
    }


def _recipe(options: argparse.Namespace) -> Recipe:
    """Return what is said on the command line, and for the rest what suits the network."""
    network = models.NETWORKS.get(options.network)
    own = (network.recipe if network else {}) or COMMON
    said = vars(options)
    given = {f.name: said[f.name] for f in fields(Recipe) if said.get(f.name) is not None}
    found = Recipe(**{**own, **given})
    if "warmup_epochs" in given:
        return found
    # A short run must not end before it is warm.
    return replace(found, warmup_epochs=min(found.warmup_epochs, found.epochs / 10))


def _say(event: AnyEvent) -> None:
    if isinstance(event, Scored):
        print(f"epoch {event.x:.0f}: {event.name} {event.y:.4f}", file=sys.stderr)
    elif isinstance(event, Noted):
        print(event.text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.models.train",
        description="Train a network and write its weights as safetensors.",
        epilog="Where an option is not given, the network's own recipe holds, if it has one: the "
        "ConvNeXts train by AdamW with warm-up and smoothed labels; all others by SGD with a "
        "learning rate of 0.1, 40 epochs, 64 images a step.",
    )
    parser.add_argument(
        "--network",
        default="resnet20",
        help=f"{', '.join(models.NAMES)}, timm:NAME or package.module:function",
    )
    parser.add_argument(
        "--data",
        default="digits",
        help='"digits", a CIFAR-10 folder, a folder of pictures or an .npz',
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--epochs", type=int, help="passes over the training split")
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), help="what changes the weights")
    parser.add_argument("--lr", type=float, help="learning rate at its highest")
    parser.add_argument("--weight-decay", type=float, help="how fast weights fade")
    parser.add_argument("--warmup-epochs", type=float, help="epochs in which the rate rises")
    parser.add_argument("--label-smoothing", type=float, help="share of a label for all classes")
    parser.add_argument("--batch", type=int, help="images a step")
    parser.add_argument("--seed", type=int, default=0, help="decides weights, splits and order (0)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (1)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where: CUDA if there is")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, help="train in bfloat16 where possible"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
