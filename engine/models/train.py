"""Train a network: the command that made the shipped weights.

    python -m engine.models.train --network resnet20 --data digits --out weights.safetensors
    python -m engine.models.train --network mine.networks:small --data shop --out shop.safetensors

Progress goes to standard error. Beside the weights stands a JSON file with the accuracy, the
command and everything else that is needed to make them again.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from engine import models
from engine.events import AnyEvent, Noted, Reporter, Scored


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
    from engine.compress.finetune import Recipe, finetune

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
    recipe = Recipe(
        epochs=options.epochs,
        lr=options.lr,
        batch=options.batch,
        nesterov=True,
        weight_decay=5e-4,
        seed=options.seed,
        threads=options.threads,
        bf16=options.bf16,
    )
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
    }


def _say(event: AnyEvent) -> None:
    if isinstance(event, Scored):
        print(f"epoch {event.x:.0f}: {event.name} {event.y:.4f}", file=sys.stderr)
    elif isinstance(event, Noted):
        print(event.text, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine.models.train",
        description="Train a network and write its weights as safetensors.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training split")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate at the start")
    parser.add_argument("--batch", type=int, default=64, help="images a step")
    parser.add_argument("--seed", type=int, default=0, help="decides weights, splits and order")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    parser.add_argument("--bf16", action="store_true", help="train in bfloat16 where possible")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
