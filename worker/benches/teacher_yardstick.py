"""deltaconv's teacher beside diffusers' on one GPU, in one go:
`python3 worker/benches/teacher_yardstick.py DELTACONV [MODEL ...] [--profile]`.

Makes each MODEL (sd15, pixart, sdxl; all by default) at full size with random bf16 weights, runs `DELTACONV bench teacher`
on it with and without --capture, and then diffusers in bf16 with channels-last maps and its scaled-dot-product attention:
alone, with hooks on every self-attention that copy input and output as f16 into page-locked buffers beside the next
pass, and with hooks that call `.cpu()`. Prints samples a second; --profile adds where diffusers' milliseconds go. Needs
torch and diffusers.
"""

import argparse
import collections
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

WARM_UP, PASSES = 3, 10
CROSS = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
# The published configurations; what is left out is the class' default.
MODELS = {
    "sd15": (
        UNet2DConditionModel,
        "unet",
        dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8, layers_per_block=2),
    ),
    "pixart": (
        PixArtTransformer2DModel,
        "transformer",
        dict(
            sample_size=64, patch_size=2, num_layers=28, num_attention_heads=16, attention_head_dim=72, in_channels=4,
            out_channels=8, cross_attention_dim=1152, caption_channels=4096, use_additional_conditions=False,
        ),
    ),
    "sdxl": (
        UNet2DConditionModel,
        "unet",
        dict(
            sample_size=128, cross_attention_dim=2048, attention_head_dim=[5, 10, 20], layers_per_block=2,
            block_out_channels=(320, 640, 1280), use_linear_projection=True,
            down_block_types=("DownBlock2D", *CROSS[0]), up_block_types=(*CROSS[1], "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10], addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
    ),
}  # fmt: skip
BATCH = {"sd15": 16, "pixart": 16, "sdxl": 4}


def make(name, folder):
    kind, part, config = MODELS[name]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = kind(**config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / part)
    model = model.eval()
    return model.to(memory_format=torch.channels_last) if kind is UNet2DConditionModel else model


def inputs(name, batch, side):
    def normal(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

    sample = normal(batch, 4, side, side)
    timestep = torch.arange(batch, device="cuda") * 37 % 1000
    if name == "pixart":
        mask = torch.arange(300, device="cuda") < 10 + torch.arange(batch, device="cuda")[:, None] * 37 % 290
        conditions = {"resolution": None, "aspect_ratio": None}
        text = {"encoder_hidden_states": normal(batch, 300, 4096), "encoder_attention_mask": mask.to(torch.bfloat16)}
        return dict(hidden_states=sample, timestep=timestep, added_cond_kwargs=conditions, **text)
    sample = sample.to(memory_format=torch.channels_last)
    if name == "sd15":
        return dict(sample=sample, timestep=timestep, encoder_hidden_states=normal(batch, 77, 768))
    sizes = torch.tensor([8.0 * side, 8 * side, 0, 0, 8 * side, 8 * side], device="cuda").repeat(batch, 1)
    conditions = {"text_embeds": normal(batch, 1280), "time_ids": sizes}
    text = normal(batch, 77, 2048)
    return dict(sample=sample, timestep=timestep, encoder_hidden_states=text, added_cond_kwargs=conditions)


class Pinned:
    """Copies what hooks see into page-locked buffers on a stream of its own, for two passes in turn."""

    def __init__(self):
        self.stream, self.pass_, self.index = torch.cuda.Stream(), 0, 0
        self.buffers, self.done = ([], []), [None, None]

    def __call__(self, tensor):
        tensor = tensor.to(torch.float16)
        buffers = self.buffers[self.pass_ % 2]
        if self.index == len(buffers):
            buffers.append(torch.empty(tensor.shape, dtype=torch.float16, pin_memory=True))
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            buffers[self.index].copy_(tensor, non_blocking=True)
        tensor.record_stream(self.stream)
        self.index += 1

    def end_pass(self):
        """Waits for the pass before, so that its buffers can be read and used again."""
        self.done[self.pass_ % 2] = self.stream.record_event()
        self.pass_, self.index = self.pass_ + 1, 0
        if before := self.done[self.pass_ % 2]:
            before.synchronize()


def with_hooks(model, copy):
    def hook(_, args, kwargs, output):
        copy(args[0] if args else kwargs["hidden_states"])
        copy(output)

    layers = [module for name, module in model.named_modules() if name.endswith(".attn1")]
    return [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]


def seconds(call, together):
    """The median of passes, each waited for; or their mean, run behind each other."""
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    times, began = [], time.perf_counter()
    for _ in range(PASSES):
        start = time.perf_counter()
        call()
        if not together:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / PASSES if together else statistics.median(times)


def of_diffusers(model, arguments, profile):
    def forward():
        with torch.inference_mode():
            return model(**arguments)

    rows = {"alone": seconds(forward, together=False)}
    pinned = Pinned()
    hooks = with_hooks(model, pinned)
    rows["page-locked"] = seconds(lambda: (forward(), pinned.end_pass()), together=True)
    for hook in hooks:
        hook.remove()
    hooks = with_hooks(model, lambda tensor: tensor.to(torch.float16).cpu())
    rows[".cpu()"] = seconds(forward, together=True)
    for hook in hooks:
        hook.remove()
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            forward()
            torch.cuda.synchronize()
        kinds = collections.Counter()
        for event in profiler.key_averages():
            kinds[kind_of(event.key)] += event.self_device_time_total / 1e3
        print({kind: round(time, 2) for kind, time in kinds.most_common()}, flush=True)
    return rows


def kind_of(kernel):
    name = kernel.lower()
    for kind, parts in {
        "convolution": ("conv", "fprop", "xmma", "implicit"),
        "attention": ("flash", "fmha", "attention", "softmax"),
        "product": ("gemm", "nvjet", "cutlass", "splitk"),
        "norm": ("norm", "moments", "welford"),
        "copy or layout": ("memcpy", "memset", "nchw", "nhwc", "copy", "cat"),
    }.items():
        if any(part in name for part in parts):
            return kind
    return "pointwise and others"


def of_deltaconv(binary, folder, batch, side, *more):
    command = [binary, "bench", "teacher", folder, "--device", "cuda", "--precision", "bf16", "-o", "json"]
    command += ["--batch", str(batch), "--latent", f"{side}x{side}", *more]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        print(result.stderr[-500:], file=sys.stderr)
        return None
    return json.loads(result.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("deltaconv")
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    columns = ["deltaconv", "with capture", "diffusers", "page-locked hooks", ".cpu() hooks", "ours ÷ best with hooks"]
    table = [columns]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            batch, side = BATCH[name], MODELS[name][2]["sample_size"]
            path = pathlib.Path(folder, name)
            model = make(name, path)
            rows = of_diffusers(model, inputs(name, batch, side), arguments.profile)
            del model
            torch.cuda.empty_cache()
            ours = [of_deltaconv(arguments.deltaconv, path, batch, side, *more) for more in ([], ["--capture"])]
            ours = [times["samples_per_second"] if times else float("nan") for times in ours]
            theirs = [batch / rows[kind] for kind in ("alone", "page-locked", ".cpu()")]
            numbers = [f"{number:.1f}" for number in (*ours, *theirs)]
            table.append([f"{name} {batch}×{side}×{side}", *numbers, f"{ours[1] / max(theirs[1:]):.2f}"])
    print(f"samples a second, {torch.cuda.get_device_name()}, torch {torch.__version__}, bf16\n")
    print("| model |", " | ".join(table[0]), "|\n|---|" + "---|" * len(columns))
    for row in table[1:]:
        print("|", " | ".join(row), "|")


if __name__ == "__main__":
    main()
