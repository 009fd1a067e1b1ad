"""Trains all ΔConvBlocks of a student together, end to end, as published (arXiv 2504.21292, section 4.1), in PyTorch.

    python joint_training.py TEACHER --seconds 100

The yardstick for deltaconv, which trains every block apart. TEACHER is a folder in diffusers layout, of a UNet or a
PixArt, with `latents.safetensors` and `prompt_embeddings.safetensors` beside the denoiser. Every self-attention becomes
a block and everything else is frozen. After so many seconds of training on one device, the noise that the student
predicts is compared with the teacher's on latents that training has not seen; the last line printed is JSON. Needs
torch, numpy, safetensors and diffusers 0.35.

The published recipe: AdamW 3e-4 with betas (0.9, 0.99), 500 steps of warm-up and then constant, batches of 16, 15 %
empty prompts; Min-SNR (gamma 5) of |eps_T - eps_S|^2 + |eps - eps_S|^2, plus 0.001 times the sum over layers of the mean
squared error of the residual stream behind attention, the student fed with its own. `--loss normalised` takes relative
errors instead. Not published: the mean of the blocks that is evaluated, and the start of the depthwise kernels.

On a GPU a step is one CUDA graph, with the memory layouts that were the fastest there.
"""

import argparse
import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

# Where diffusers finds these it imports them, and breaks on versions that it doesn't know.
sys.modules.update(dict.fromkeys(("transformers", "accelerate", "peft")))
from diffusers.models.attention import BasicTransformerBlock  # noqa: E402
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel  # noqa: E402
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: E402
from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # noqa: E402

SCALES = (1.0, 0.5)
KERNEL_NOISE = 0.1
BETAS = (0.9, 0.99)
WARM_UP_STEPS = 500
MIN_SNR_GAMMA = 5.0
LAYER_WEIGHT = 0.001
EMPTY_PROMPTS = 0.15
EMA_DECAY = 0.999

HELD_OUT_LATENTS = 48
EVALUATED = 512
EVALUATION_BATCH = 64
EVALUATION_SEED = 12345

LAYOUTS = (torch.contiguous_format, torch.channels_last)
# Steps between two looks at the clock, and steps that are run before any is timed; on a GPU and on a CPU.
CHUNK = {"cuda": 20, "cpu": 1}
UNTIMED_STEPS = {"cuda": 10, "cpu": 2}


class DeltaConvBlock(nn.Module):
    """x [B, H, W, C] to the same shape."""

    def __init__(self, channels: int, kernel_size: int, gate: str, inter_ratio: float) -> None:
        super().__init__()
        inner = int(channels * inter_ratio)
        self.gate = gate
        self.layout = torch.contiguous_format
        self.conv_up = nn.Linear(channels, inner)
        self.conv_spatial = nn.ModuleList(
            nn.Conv2d(inner, inner, kernel_size, padding=kernel_size // 2, groups=inner, bias=False) for _ in SCALES
        )
        self.conv_out = nn.Linear(len(SCALES) * (inner // 2), channels)
        self.conv_pool = nn.Linear(channels, channels)
        for conv in self.conv_spatial:
            nn.init.uniform_(conv.weight, -KERNEL_NOISE / kernel_size, KERNEL_NOISE / kernel_size)
            conv.weight.data[..., kernel_size // 2, kernel_size // 2] += 1.0

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        h = self.conv_up(x).permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
        parts = []
        for scale, conv in zip(SCALES, self.conv_spatial):
            if scale == 1.0:
                parts.append(self.gated(conv(h)))
                continue
            pooled = F.adaptive_avg_pool2d(h, (int(height * scale), int(width * scale)))
            part = self.gated(conv(pooled))
            parts.append(F.interpolate(part, (height, width), mode="bilinear", align_corners=False))
        mixed = self.conv_out(torch.cat(parts, dim=1).permute(0, 2, 3, 1))
        return mixed + self.conv_pool(x.mean(dim=(1, 2), keepdim=True))

    def gated(self, g: Tensor) -> Tensor:
        a, b = g.chunk(2, dim=1)
        return a * b * math.sqrt(a.shape[1]) if self.gate == "scaled" else a * torch.sigmoid(b)


class Replaced(nn.Module):
    """A block where attention was: [B, rows * columns, C] to the same shape."""

    def __init__(self, block: DeltaConvBlock, rows: int, columns: int) -> None:
        super().__init__()
        self.block, self.map = block, (rows, columns)

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        return self.block(hidden_states.unflatten(1, self.map)).flatten(1, 2)


class Removed(nn.Module):
    """Nothing where attention was."""

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        return torch.zeros_like(hidden_states)


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """In the order of a pass; a UNet registers its middle last, but the alphabet has it right."""
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, BasicTransformerBlock)]
    return [layer for _, layer in sorted(found, key=lambda name_layer: name_layer[0].split(".")[0])]


def replaced(model: nn.Module, replacements: list[nn.Module]) -> nn.Module:
    """A copy of `model` with these in the place of its layers' self-attention."""
    model = copy.deepcopy(model)
    for layer, replacement in zip(attention_layers(model), replacements, strict=True):
        layer.attn1 = replacement
    return model


class Denoiser(nn.Module):
    """A model of diffusers that also returns each layer's residual stream before and behind self-attention."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.before: list[Tensor] = []
        self.behind: list[Tensor] = []
        self.sizes = {}
        if isinstance(model, PixArtTransformer2DModel):
            self.sizes = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        for layer in attention_layers(model):
            # PixArt has no norm before cross-attention.
            follower = layer.attn2 if layer.norm_type == "ada_norm_single" else layer.norm2
            layer.register_forward_pre_hook(lambda _, given: self.before.append(given[0]))
            follower.register_forward_pre_hook(lambda _, given: self.behind.append(given[0]))

    def forward(
        self, noised: Tensor, timestep: Tensor, conditions: dict[str, Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        self.before, self.behind = [], []
        predicted = self.model(noised, timestep=timestep, return_dict=False, **conditions, **self.sizes)[0]
        before, behind = self.before, self.behind
        self.before, self.behind = [], []
        # A learned variance comes behind the noise.
        return predicted[:, : noised.shape[1]].float(), before, behind


def load(folder: Path) -> nn.Module:
    classes = {"unet": UNet2DConditionModel, "transformer": PixArtTransformer2DModel}
    name = next(name for name in classes if (folder / name).is_dir())
    model = classes[name].from_pretrained(folder / name, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    return model.requires_grad_(False).eval()


class Data:
    """Latents and prompts on the device, and the teacher's noise schedule."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        stored = load_file(folder / "latents.safetensors")
        self.latents, self.prompt = stored["latents"].float().to(device), stored["prompt"].to(device)
        texts = load_file(folder / "prompt_embeddings.safetensors")
        self.texts = {"encoder_hidden_states": texts["embeddings"].float().to(device)}
        if "attention_mask" in texts:
            self.texts["encoder_attention_mask"] = texts["attention_mask"].float().to(device)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        if scheduler.config.prediction_type != "epsilon":
            raise SystemExit(f"{folder}: predicts {scheduler.config.prediction_type}, expected epsilon")
        self.alphas = scheduler.alphas_cumprod.to(device)
        self.training = len(self.latents) - HELD_OUT_LATENTS

    def noised(self, rows: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        alpha = self.alphas[timestep].view(-1, 1, 1, 1)
        return alpha.sqrt() * self.latents[rows] + (1 - alpha).sqrt() * noise

    def conditions(self, rows: Tensor, chance: Tensor) -> dict[str, Tensor]:
        """The prompts of these latents, empty ones where `chance` (uniform) says so."""
        empty = len(self.texts["encoder_hidden_states"]) - 1
        prompt = self.prompt[rows].masked_fill(chance < EMPTY_PROMPTS, empty)
        return {name: values[prompt] for name, values in self.texts.items()}


def set_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


class Evaluation:
    """Held-out samples, the same ones on every device, and what the teacher predicts for them, in f32."""

    def __init__(self, data: Data, teacher: Denoiser) -> None:
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        strata = (torch.arange(EVALUATED) + torch.rand(EVALUATED, generator=generator)) / EVALUATED
        timestep = (strata * len(data.alphas)).long().clamp(max=len(data.alphas) - 1)
        rows = torch.randint(data.training, len(data.latents), (EVALUATED,), generator=generator)
        noise = torch.randn(EVALUATED, *data.latents.shape[1:], generator=generator)
        chance = torch.rand(EVALUATED, generator=generator)
        self.batches = []
        for batch in zip(*(drawn.to(data.latents.device).split(EVALUATION_BATCH)
                           for drawn in (rows, timestep, noise, chance))):
            rows, timestep, noise, chance = batch
            self.batches.append((data.noised(rows, timestep, noise), timestep, data.conditions(rows, chance)))
        self.expected = self.predictions(teacher)

    @torch.no_grad()
    def predictions(self, model: Denoiser) -> Tensor:
        set_tf32(False)
        predicted = torch.cat([model(*batch)[0] for batch in self.batches])
        set_tf32(True)
        return predicted.double()

    def relative_error(self, model: Denoiser) -> float:
        error = (self.predictions(model) - self.expected).square().sum()
        return (error / self.expected.square().sum()).item()


class Training:
    """The blocks of `student`, their optimiser, their running mean `average`, and a step that waits for nothing."""

    def __init__(self, data: Data, teacher: Denoiser, student: Denoiser, parameters: list[Tensor],
                 average: list[Tensor], options: argparse.Namespace) -> None:
        self.data, self.teacher, self.student, self.options = data, teacher, student, options
        self.parameters, self.average = parameters, average
        self.device = data.latents.device
        self.count = torch.zeros((), device=self.device)
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=torch.zeros((), device=self.device), betas=BETAS, weight_decay=0.0,
            fused=True, capturable=self.device.type == "cuda",
        )

    def step(self) -> None:
        data, batch, device = self.data, self.options.batch, self.device
        rows = torch.randint(data.training, (batch,), device=device)
        timestep = torch.randint(len(data.alphas), (batch,), device=device)
        noise = torch.randn(batch, *data.latents.shape[1:], device=device)
        conditions = data.conditions(rows, torch.rand(batch, device=device))
        noised = data.noised(rows, timestep, noise)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.options.precision == "bf16"):
            with torch.no_grad():
                expected, before, behind = self.teacher(noised, timestep, conditions)
            predicted, _, ours = self.student(noised, timestep, conditions)
        of_layers = [(a.float() - b.float()).square().mean() for a, b in zip(ours, behind)]
        if self.options.loss == "paper":
            snr = data.alphas[timestep] / (1 - data.alphas[timestep])
            weight = (snr.clamp(max=MIN_SNR_GAMMA) / snr).view(-1, 1, 1, 1)
            of_noise = weight * ((predicted - expected).square() + (predicted - noise).square())
            loss = of_noise.mean() + LAYER_WEIGHT * torch.stack(of_layers).sum()
        else:
            attention = [(b.float() - a.float()).square().mean() for a, b in zip(before, behind)]
            relative = torch.stack(of_layers) / torch.stack(attention)
            loss = (predicted - expected).square().mean() / expected.square().mean() + relative.mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        self.count += 1
        rate = self.optimiser.param_groups[0]["lr"]
        rate.copy_(self.options.learning_rate * (self.count / WARM_UP_STEPS).clamp(max=1.0))
        self.optimiser.step()
        # The first steps count for more, so that the mean soon forgets where the blocks began.
        change = torch._foreach_sub(self.parameters, self.average)
        torch._foreach_mul_(change, (9 / (10 + self.count)).clamp(min=1 - EMA_DECAY))
        torch._foreach_add_(self.average, change)

    def prepared(self) -> Callable[[], None]:
        """What makes a step, once everything is as fast as it gets; the blocks are as they were."""
        start = [p.detach().clone() for p in self.parameters]
        seconds = {}
        for layouts in itertools.product(LAYOUTS, LAYOUTS):
            self.lay_out(*layouts)
            seconds[layouts] = self.seconds_per_step(self.captured())
            print(f"denoiser, blocks {layouts}: {1000 * seconds[layouts]:.2f} ms a step", file=sys.stderr)
        self.lay_out(*min(seconds, key=seconds.get))
        if self.options.compile:
            self.teacher.compile()
            self.student.compile()
        run = self.captured()
        print(f"chosen: {1000 * self.seconds_per_step(run):.2f} ms a step", file=sys.stderr)
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, start)
            torch._foreach_copy_(self.average, start)
            torch._foreach_zero_([value for state in self.optimiser.state.values() for value in state.values()])
            self.count.zero_()
        return run

    def lay_out(self, of_denoiser: torch.memory_format, of_blocks: torch.memory_format) -> None:
        for module in itertools.chain(self.teacher.modules(), self.student.modules()):
            if isinstance(module, DeltaConvBlock):
                module.layout = of_blocks
            elif isinstance(module, nn.Conv2d) and not module.weight.requires_grad:
                module.weight.data = module.weight.data.contiguous(memory_format=of_denoiser)

    def captured(self) -> Callable[[], None]:
        untimed = UNTIMED_STEPS[self.device.type]
        if self.device.type == "cpu":
            for _ in range(untimed):
                self.step()
            return self.step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(untimed):
                self.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        return graph.replay

    def seconds_per_step(self, run: Callable[[], None]) -> float:
        steps = CHUNK[self.device.type]
        run()
        self.wait()
        began = time.monotonic()
        for _ in range(steps):
            run()
        self.wait()
        return (time.monotonic() - began) / steps

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def kernel_sizes(option: str, maps: list[tuple[int, int]]) -> list[int]:
    """A layer's size each: planned by its map as deltaconv does for models of no published sizes, or as given."""
    if option == "planned":
        sides = [min(rows_columns) for rows_columns in maps]
        return [7 if side >= 24 else 11 if side >= 12 else max(3, side + 1 - side % 2) for side in sides]
    sizes = [int(size) for size in option.split(",")]
    sizes = sizes * len(maps) if len(sizes) == 1 else sizes
    if len(sizes) != len(maps) or any(size % 2 == 0 for size in sizes):
        raise SystemExit(f"--kernel-sizes {option}: expected planned, an odd number, or {len(maps)} with commas between")
    return sizes


def parse_arguments() -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--seconds", type=float, default=100.0, help="of training, without preparing and evaluating")
    parser.add_argument("--device", choices=["cuda", "cpu"], default=device)
    parser.add_argument("--loss", choices=["paper", "normalised"], default="paper")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--kernel-sizes", default="planned", help="planned, an odd number, or one for each layer: 7,9,7")
    parser.add_argument("--inter-ratio", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=["bf16", "f32"], help="default: bf16 autocast on a GPU; f32 has TF32 there")
    parser.add_argument("--compile", action="store_true", help="torch.compile teacher and student before training")
    options = parser.parse_args()
    options.precision = options.precision or ("bf16" if options.device == "cuda" else "f32")
    return options


def main() -> None:
    options = parse_arguments()
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    set_tf32(True)

    data = Data(options.teacher, device)
    original = load(options.teacher).to(device)
    teacher = Denoiser(copy.deepcopy(original))
    first = torch.zeros(1, dtype=torch.long, device=device)
    with torch.no_grad():
        streams = teacher(data.latents[:1], first, data.conditions(first, torch.ones(1, device=device)))[2]
    aspect = data.latents.shape[2] / data.latents.shape[3]
    rows = [round(math.sqrt(stream.shape[1] * aspect)) for stream in streams]
    maps = [(r, stream.shape[1] // r) for r, stream in zip(rows, streams)]
    gate = "sigmoid" if isinstance(original, PixArtTransformer2DModel) else "scaled"
    blocks = nn.ModuleList(
        Replaced(DeltaConvBlock(stream.shape[2], size, gate, options.inter_ratio), *map_)
        for stream, size, map_ in zip(streams, kernel_sizes(options.kernel_sizes, maps), maps)
    ).to(device)
    averaged = copy.deepcopy(blocks).requires_grad_(False)

    evaluation = Evaluation(data, teacher)
    removed = evaluation.relative_error(Denoiser(replaced(original, [Removed() for _ in maps])))
    evaluated = Denoiser(replaced(original, list(averaged)))
    if options.precision == "bf16":
        # What autocast makes of frozen weights at every use.
        for module in original.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(torch.bfloat16)
    student = Denoiser(replaced(original, list(blocks)))
    of_blocks, of_average = list(blocks.parameters()), list(averaged.parameters())
    training = Training(data, Denoiser(original), student, of_blocks, of_average, options)
    run = training.prepared()

    steps, spent, history = 0, 0.0, []
    for quarter in range(1, 5):
        began, before = time.monotonic(), spent
        while spent < options.seconds * quarter / 4:
            for _ in range(CHUNK[device.type]):
                run()
            training.wait()
            steps += CHUNK[device.type]
            spent = before + time.monotonic() - began
        history.append([round(spent, 1), evaluation.relative_error(evaluated)])
        print(f"{spent:.1f} s, {steps} steps: {history[-1][1]:.5f} (removed: {removed:.5f})", file=sys.stderr)
    result = {"teacher": options.teacher.name, "loss": options.loss, "seconds": round(spent, 1), "steps": steps}
    result |= {"epsilon_relative_mse": history[-1][1], "removed": removed, "history": history}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
