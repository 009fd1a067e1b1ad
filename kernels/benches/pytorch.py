"""The yardstick's other side: the ΔConvBlock and AdamW in PyTorch on the CPU, float32.

Prints the same medians as `cargo bench -p deltaconv-kernels`. Needs `torch`; the number of threads
is the first argument (default 2), `--channels-last` tries the other memory format.
"""

import math
import statistics
import sys
import time

import torch
import torch.nn.functional as F

BATCH = 16
SHAPES = [(32, 64, 7), (16, 128, 5), (8, 128, 3), (16, 128, 11), (8, 128, 9)]


class DeltaConvBlock(torch.nn.Module):
    """Maps [B, C, H, W] to the same shape; scales 1 and ½, the scaled gate."""

    def __init__(self, channels, kernel_size):
        super().__init__()
        inner = channels // 2
        self.inner, self.kernel_size = inner, kernel_size
        self.conv_up = torch.nn.Conv2d(channels, inner, 1)
        self.gates = torch.nn.ModuleList(
            torch.nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner, bias=False)
            for _ in range(2)
        )
        self.conv_out = torch.nn.Conv2d(inner, channels, 1)
        self.conv_pool = torch.nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        height, width = x.shape[2:]
        hidden = self.conv_up(x)
        parts = []
        for scale, gate in zip((1.0, 0.5), self.gates):
            small = hidden
            if scale != 1.0:
                small = F.adaptive_avg_pool2d(hidden, (int(height * scale), int(width * scale)))
            a, b = gate(small).chunk(2, dim=1)
            part = a * b * math.sqrt(self.inner / 2)
            if scale != 1.0:
                part = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
            parts.append(part)
        return self.conv_out(torch.cat(parts, 1)) + self.conv_pool(x.mean((2, 3), keepdim=True))


def median(call):
    for _ in range(5):
        call()
    times, start = [], time.perf_counter()
    while len(times) < 20 or time.perf_counter() - start < 1:
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times) * 1e3


def main():
    numbers = [argument for argument in sys.argv[1:] if argument.isdigit()]
    torch.set_num_threads(int(numbers[0]) if numbers else 2)
    layout = torch.channels_last if "--channels-last" in sys.argv else torch.contiguous_format
    print(f"{'map, kernel':<14} {'forward ms':>12} {'step ms':>12}")
    for edge, channels, kernel_size in SHAPES:
        torch.manual_seed(0)
        block = DeltaConvBlock(channels, kernel_size).to(memory_format=layout)
        x = torch.randn(BATCH, channels, edge, edge).to(memory_format=layout)
        target = torch.randn_like(x)
        optimiser = torch.optim.AdamW(block.parameters(), lr=1e-6)

        def step():
            optimiser.zero_grad()
            F.mse_loss(block(x), target).backward()
            optimiser.step()

        @torch.no_grad()
        def forward():
            block(x)

        name = f"{edge}×{edge}×{channels} K{kernel_size}"
        print(f"{name:<14} {median(forward):>12.3f} {median(step):>12.3f}", flush=True)


if __name__ == "__main__":
    main()
