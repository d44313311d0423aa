"""CRATE-Tiny at 224 px against its published form and against timm's ViT of the same width and depth.

python -m benchmarks.crate [--device cpu|cuda] [--batch 16] [--rounds 9]
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import interleaved, machine, matmul_peak
from tests.oracles import PublishedCRATE
from unrolled.models import create_model


def flops(model: nn.Module, images: torch.Tensor) -> int:
    """Floating-point operations of matrix products in one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()


def infer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype
) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(images)
    nn.functional.cross_entropy(logits.float(), labels).backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = args.device
    images = torch.randn(args.batch, 3, 224, 224, device=device)
    labels = torch.randint(1000, (args.batch,), device=device)

    crate = create_model("crate_tiny_patch16_224").to(device).eval()
    published = PublishedCRATE(copy.deepcopy(crate))
    vit = VisionTransformer(embed_dim=384, depth=12, num_heads=6).to(device).eval()
    difference = (infer(crate, images) - infer(published, images)).abs().max()
    print(machine(device))
    print(f"largest difference from the published form: {float(difference):.1e}")
    if args.device == "cpu" and difference > 1e-5:
        raise SystemExit("outputs differ by more than 1e-5: the comparison would be of different functions")

    def wrap(model: nn.Module) -> nn.Module:
        return torch.compile(model) if args.compile else model

    runs = {
        "published fp32": (wrap(published), images),
        "ViT fp32": (wrap(vit), images),
        "CRATE fp32": (wrap(crate), images),
        "published bf16": (wrap(copy.deepcopy(published).bfloat16()), images.bfloat16()),
        "ViT bf16": (wrap(copy.deepcopy(vit).bfloat16()), images.bfloat16()),
        "CRATE bf16": (wrap(copy.deepcopy(crate).bfloat16()), images.bfloat16()),
    }
    inference = interleaved({name: partial(infer, *run) for name, run in runs.items()}, args.rounds)
    peaks = {dtype: matmul_peak(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    work = {
        "published fp32": flops(published, images),
        "ViT fp32": flops(vit, images),
        "CRATE fp32": flops(crate, images),
    }
    work |= {name.replace("fp32", "bf16"): value for name, value in work.items()}
    print(f"\ninference, batch {args.batch}: milliseconds, images/s, GFLOP, share of matmul peak, speed-up")
    for name, seconds in inference.items():
        peak = peaks[torch.bfloat16 if "bf16" in name else torch.float32]
        print(
            f"{name:16} {1e3 * seconds:8.1f} {args.batch / seconds:8.1f} {work[name] / 1e9:7.1f} "
            f"{work[name] / seconds / peak:5.0%} {inference['published fp32'] / seconds:6.2f}x"
        )
    print(
        f"CRATE fp32 against ViT fp32: {inference['ViT fp32'] / inference['CRATE fp32']:.2f}x, "
        f"FLOP ratio {work['ViT fp32'] / work['CRATE fp32']:.2f}; "
        f"FLOP ratio to published {work['published fp32'] / work['CRATE fp32']:.2f}"
    )

    training = {}
    for dtype in (torch.float32, torch.bfloat16) if device != "cpu" else (torch.float32,):
        for name, model in (("published", published), ("ViT", vit), ("CRATE", crate)):
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
            label = f"{name} {'fp32' if dtype == torch.float32 else 'bf16'}"
            training[label] = partial(step, wrap(model.train()), optimizer, images, labels, dtype)
    seconds = interleaved(training, args.rounds)
    print(f"\ntraining step with AdamW, batch {args.batch}: milliseconds, images/s, share of peak, speed-up")
    for name, value in seconds.items():
        peak = peaks[torch.bfloat16 if "bf16" in name else torch.float32]
        print(
            f"{name:16} {1e3 * value:8.1f} {args.batch / value:8.1f} {3 * work[name] / value / peak:5.0%} "
            f"{seconds['published fp32'] / value:6.2f}x"
        )


if __name__ == "__main__":
    main()
