"""deltaconv's block beside PyTorch's on one GPU, in one go: `python3 kernels/benches/yardstick.py DELTACONV [FILTER]`.

Runs `DELTACONV bench kernels --device cuda -o json`, then measures the same shapes in PyTorch, bf16, every call replayed
from a CUDA graph: the block with grouped cuDNN convolutions (forward, and a step with fused AdamW on f32 weights), and
the attention layer that it replaces (qkv, flash attention, output projection; forward). Prints medians in µs. Needs
torch.
"""

import json
import math
import statistics
import subprocess
import sys

import torch
import torch.nn.functional as F


class DeltaConvBlock(torch.nn.Module):
    """Maps [B, C, H, W] to the same shape; scales 1 and ½."""

    def __init__(self, channels, kernel_size, sigmoid):
        super().__init__()
        inner = channels // 2
        self.inner, self.sigmoid = inner, sigmoid
        self.conv_up = torch.nn.Conv2d(channels, inner, 1)
        self.gates = torch.nn.ModuleList(
            torch.nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner, bias=False)
            for _ in range(2)
        )
        self.conv_out = torch.nn.Conv2d(inner, channels, 1)
        self.conv_pool = torch.nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        hidden, parts = self.conv_up(x), []
        for scale, gate in zip((1, 2), self.gates):
            a, b = gate(F.avg_pool2d(hidden, 2) if scale == 2 else hidden).chunk(2, dim=1)
            part = a * b.sigmoid() if self.sigmoid else a * b * math.sqrt(self.inner / 2)
            parts.append(F.interpolate(part, scale_factor=2, mode="bilinear") if scale == 2 else part)
        return self.conv_out(torch.cat(parts, 1)) + self.conv_pool(x.mean((2, 3), keepdim=True))


class Attention(torch.nn.Module):
    """Self-attention over [B, N, C], 8 heads."""

    def __init__(self, channels):
        super().__init__()
        self.qkv = torch.nn.Linear(channels, 3 * channels, bias=False)
        self.out = torch.nn.Linear(channels, channels)

    def forward(self, x):
        batch, length, channels = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 8, channels // 8).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, channels))


def replayed(call):
    """The median in µs of a call's graph, over events around 5 replays each."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for sample in range(25):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(5):
            graph.replay()
        after.record()
        after.synchronize()
        if sample >= 5:
            times.append(before.elapsed_time(after) * 200)
    return statistics.median(times)


def yardsticks(row):
    batch, height, width, channels = row["shape"]
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width, device="cuda").to(torch.bfloat16)
    x = x.to(memory_format=torch.channels_last)
    target = torch.randn_like(x)
    block = DeltaConvBlock(channels, row["kernel_size"], row["gate"] == "sigmoid").cuda()
    block = block.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(block.parameters(), lr=1e-6, fused=True, capturable=True)

    def step():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = F.mse_loss(block(x), target)
        loss.backward()
        optimiser.step()

    figures = {"step": replayed(step) if row["step_us"] else None}
    half = DeltaConvBlock(channels, row["kernel_size"], row["gate"] == "sigmoid").cuda().bfloat16()
    half = half.to(memory_format=torch.channels_last)
    attention = Attention(channels).cuda().bfloat16()
    tokens = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    with torch.no_grad():
        figures["forward"] = replayed(lambda: half(x))
        figures["attention"] = replayed(lambda: attention(tokens))
    return figures


def main():
    command = [sys.argv[1], "bench", "kernels", "--device", "cuda", "-o", "json", *sys.argv[2:]]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["kernels"]
    number = lambda value: f"{value:>11.1f}" if value else f"{'–':>11}"
    print(f"{'shape':<24}{'forward':>11}{'cuDNN':>11}{'attention':>11}{'step':>11}{'cuDNN':>11}")
    for row in rows:
        name = "×".join(map(str, row["shape"])) + f" K{row['kernel_size']}"
        theirs = yardsticks(row)
        figures = [row["forward_us"], theirs["forward"], theirs["attention"], row["step_us"], theirs["step"]]
        print(f"{name:<24}" + "".join(map(number, figures)), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
