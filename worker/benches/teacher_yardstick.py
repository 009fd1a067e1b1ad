"""deltaconv's teacher beside diffusers' on one GPU, in one go:
`python3 worker/benches/teacher_yardstick.py DELTACONV [MODEL ...] [--models DIR] [--profile]`.

Makes each MODEL (sd15, sdxl, pixart; all by default) at full size with random bf16 weights, runs `DELTACONV bench teacher`
on it with and without --capture, and then diffusers in bf16 with channels-last maps, cuDNN's fastest algorithms and scaled
dot-product attention: alone, with hooks on every self-attention that copy its input and output as f16 into page-locked
buffers beside the next pass, and with hooks that call `.cpu()`. Prints samples a second as a Markdown table: of the median
pass, and with page-locked hooks of passes behind each other, as deltaconv does with capture. --models keeps the models in
DIR or takes those that are there; --profile adds where the milliseconds of diffusers' pass go. What a run has measured so
far is on stderr. `--device cpu --small` tries the script without a GPU. Needs torch and diffusers.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
from reference import PIXARTS, UNETS

WARM_UP, PASSES = 3, 10
BATCH = {"sd15": 16, "sdxl": 4, "pixart": 16}
SMALL_BATCH = 2
PARTS = {UNet2DConditionModel: "unet", PixArtTransformer2DModel: "transformer"}
# What part of an operation's name, or of the outermost that called it, says its kind.
KINDS = {
    "convolutions": ("conv",),
    "attention": ("scaled_dot_product",),
    "products": ("aten::linear", "aten::addmm", "aten::mm", "matmul", "bmm"),
    "norms": ("norm",),
}


def say(line):
    print(line, file=sys.stderr, flush=True)


def configuration(name, size):
    """A model's class, its arguments, and its latents' height and width."""
    family = PIXARTS["pixart-sigma"] if name == "pixart" else UNETS[name]
    config, latent = family[size]
    config = family["common"] | config
    if name != "pixart":
        return UNet2DConditionModel, config | {"sample_size": latent[0]}, latent
    if size == "full":  # of PixArt-Σ-XL-2-512-MS, where reference.py has the one for 1024
        config, latent = config | {"sample_size": 64, "interpolation_scale": 1}, (64, 64)
    return PixArtTransformer2DModel, config | {"caption_channels": 4096 if size == "full" else 20}, latent


def build(kind, config, device):
    torch.manual_seed(0)
    with torch.device(device):
        model = kind(**config)
    return model.to(device, torch.bfloat16).eval()


def make(folder, kind, config, device):
    """Writes the model unless it is there. Its scheduler goes last: a folder that has one is whole."""
    if (folder / "scheduler").exists():
        return
    build(kind, config, device).save_pretrained(folder / PARTS[kind])
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    ends = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    DDIMScheduler(num_train_timesteps=1000, **betas, **ends).save_pretrained(folder / "scheduler")


def load(folder, kind, config, device):
    model = build(kind, config, device)
    model.load_state_dict(load_file(folder / PARTS[kind] / "diffusion_pytorch_model.safetensors", device=device))
    return model.to(memory_format=torch.channels_last) if kind is UNet2DConditionModel else model


def inputs(config, batch, latent, device):
    """Random arguments of `forward`: text [B, 77, C], or [B, 300, C] of which PixArt sees as many tokens as a prompt has."""

    def normal(*shape):
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    sample, samples = normal(batch, 4, *latent), torch.arange(batch, device=device)
    arguments = {"timestep": samples * 37 % 1000}
    if "caption_channels" in config:
        mask = torch.arange(300, device=device) < 10 + samples[:, None] * 37 % 290
        arguments |= {"hidden_states": sample, "encoder_hidden_states": normal(batch, 300, config.caption_channels)}
        conditions = {"resolution": None, "aspect_ratio": None}
        return arguments | {"encoder_attention_mask": mask.to(torch.bfloat16), "added_cond_kwargs": conditions}
    arguments["sample"] = sample.to(memory_format=torch.channels_last)
    arguments["encoder_hidden_states"] = normal(batch, 77, config.cross_attention_dim)
    if config.addition_embed_type == "text_time":
        height, width = (8.0 * side for side in latent)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        time_ids = torch.tensor([height, width, 0, 0, height, width], device=device).repeat(batch, 1)
        arguments["added_cond_kwargs"] = {"text_embeds": normal(batch, pooled), "time_ids": time_ids}
    return arguments


class PageLocked:
    """Copies what hooks see to the host as f16 on a stream of its own, into the buffers of two passes in turn."""

    def __init__(self, device):
        self.device, self.backend = device, torch.get_device_module(device)
        self.stream = self.backend.Stream()
        self.buffers, self.copied = ([], []), [None, None]
        self.turn = self.index = 0

    def __call__(self, tensor):
        buffers = self.buffers[self.turn]
        if self.index == len(buffers):
            staged = torch.empty(tensor.shape, dtype=torch.float16, device=self.device)
            buffers.append((staged, torch.empty(tensor.shape, dtype=torch.float16, pin_memory=self.device != "cpu")))
        staged, host = buffers[self.index]
        self.index += 1
        staged.copy_(tensor)
        self.stream.wait_stream(self.backend.current_stream())
        with self.backend.stream(self.stream):
            host.copy_(staged, non_blocking=True)

    def end_pass(self):
        """Waits for the copies of the pass before, whose buffers are next."""
        self.copied[self.turn] = self.stream.record_event()
        self.turn, self.index = 1 - self.turn, 0
        if (before := self.copied[self.turn]) is not None:
            before.synchronize()

    def bytes(self):
        return sum(host.nbytes for _, host in self.buffers[0])


@contextlib.contextmanager
def hooked(model, copy):
    """`copy` gets every self-attention's input and its output."""

    def hook(_, args, kwargs, output):
        copy(args[0] if args else kwargs["hidden_states"])
        copy(output)

    layers = [module for path, module in model.named_modules() if path.endswith(".attn1")]
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    yield
    for handle in handles:
        handle.remove()


def median_seconds(call, wait):
    """Of passes, each waited for."""
    times = []
    for _ in range(WARM_UP + PASSES):
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times[WARM_UP:])


def mean_seconds(call, wait):
    """Of passes behind each other, the last one waited for."""
    for _ in range(WARM_UP):
        call()
    wait()
    began = time.perf_counter()
    for _ in range(PASSES):
        call()
    wait()
    return (time.perf_counter() - began) / PASSES


@torch.inference_mode()
def of_diffusers(model, arguments, device, profile):
    """Seconds a pass alone, with page-locked and with `.cpu()` hooks; bytes that hooks copy; milliseconds by kind."""
    wait = torch.get_device_module(device).synchronize

    def forward():
        return model(**arguments).sample

    if not forward().isfinite().all():
        say("diffusers' prediction isn't finite: a GPU may be faster at this than at work")
    alone = median_seconds(forward, wait)
    kinds = milliseconds_by_kind(forward, wait, device) if profile else None

    copies = PageLocked(device)

    def with_copies():
        forward()
        copies.end_pass()

    with hooked(model, copies):
        page_locked = mean_seconds(with_copies, wait)

    kept = []

    def with_cpu():
        kept.clear()
        forward()

    with hooked(model, lambda tensor: kept.append(tensor.half().cpu())):
        cpu = median_seconds(with_cpu, wait)
    return (alone, page_locked, cpu), copies.bytes(), kinds


def milliseconds_by_kind(forward, wait, device):
    """What a pass's kernels take, by what launched them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        forward()
        wait()
    milliseconds = collections.Counter()
    for event in profiler.events():
        # Kernels are events of their own too, and would count twice.
        if event.device_type == torch.autograd.DeviceType.CPU:
            own = event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
            milliseconds[kind_of(event)] += own / 1e3
    return milliseconds


def kind_of(event):
    found = "rest"
    while event is not None:
        for kind, parts in KINDS.items():
            if any(part in event.name for part in parts):
                found = kind
        event = event.cpu_parent
    return found


def of_deltaconv(binary, folder, batch, latent, *more):
    """Samples a second and captured bytes; None twice where it fails."""
    size = f"{latent[0]}x{latent[1]}"
    command = [binary, "bench", "teacher", str(folder), "--batch", str(batch), "--latent", size]
    command += ["--dtype", "bf16", "-o", "json", *more]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if result.returncode == 0:
            measured = json.loads(result.stdout)
            return measured["samples_per_second"], measured.get("captured_bytes")
        reason = "\n".join(result.stderr.splitlines()[-5:])
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        reason = repr(error)
    say(f"{' '.join(command)} failed:\n{reason}")
    return None, None


def print_table(columns, rows):
    print("|", " | ".join(columns), "|\n|---|" + "---:|" * (len(columns) - 1))
    for name, *numbers in rows:
        shown = ["–" if number is None else f"{number:.2f}" for number in numbers]
        print("|", " | ".join([name, *shown]), "|")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deltaconv", metavar="DELTACONV")
    parser.add_argument("names", nargs="*", metavar="MODEL", default=list(BATCH))
    parser.add_argument("--models", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true")
    chosen = parser.parse_intermixed_args()
    if unknown := set(chosen.names) - set(BATCH):
        parser.error(f"no model {', '.join(unknown)}: there are {', '.join(BATCH)}")
    torch.backends.cudnn.benchmark = True
    size, device = "small" if chosen.small else "full", chosen.device
    speeds, profiles = [], []
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen.names:
            kind, config, latent = configuration(name, size)
            batch = SMALL_BATCH if chosen.small else BATCH[name]
            title = f"{name} {batch}×{latent[0]}×{latent[1]}"
            folder = (chosen.models or pathlib.Path(temporary)) / f"{name}-{size}"
            make(folder, kind, config, device)
            torch.cuda.empty_cache()
            ours, _ = of_deltaconv(chosen.deltaconv, folder, batch, latent)
            captured, our_bytes = of_deltaconv(chosen.deltaconv, folder, batch, latent, "--capture")
            say(f"{title}: deltaconv {ours} samples/s, with capture {captured}, {our_bytes} bytes a batch")

            model = load(folder, kind, config, device)
            arguments = inputs(model.config, batch, latent, device)
            seconds, their_bytes, kinds = of_diffusers(model, arguments, device, chosen.profile)
            del model, arguments
            torch.cuda.empty_cache()
            theirs = [batch / each for each in seconds]
            say(f"{title}: diffusers alone, page-locked, .cpu() {theirs} samples/s, {their_bytes} bytes a batch")
            speeds.append([title, ours, captured, *theirs, captured and captured / max(theirs[1:])])
            if kinds is not None:
                say(f"{title}: {dict(kinds)}")
                times = [kinds[kind] for kind in (*KINDS, "rest")]
                profiles.append([title, *times, sum(times), seconds[0] * 1e3])
    where = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"{where}, torch {torch.__version__}, bf16\n")
    if profiles:
        print("Milliseconds of diffusers' kernels in a pass, and of the median pass without the profiler:\n")
        print_table(["model", *KINDS, "rest", "kernels", "pass"], profiles)
        print()
    print("Samples a second:\n")
    columns = ["deltaconv", "with capture", "diffusers", "page-locked hooks", ".cpu() hooks", "capture ÷ best hooks"]
    print_table(["model", *columns], speeds)


if __name__ == "__main__":
    main()
