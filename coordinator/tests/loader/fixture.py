"""Teachers, random blocks for them, and outputs as assembly writes them."""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
TEACHERS = {
    "tiny-unet": (UNet2DConditionModel, "unet", "scaled"),
    "tiny-pixart": (PixArtTransformer2DModel, "transformer", "sigmoid"),
}


def load_loader():
    """The loader as it lies in the sources."""
    path = ROOT / "coordinator/src/assemble/deltaconv_diffusers.py"
    spec = importlib.util.spec_from_file_location("deltaconv_diffusers", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_teacher(name):
    """The denoiser that ships with deltaconv, f32, for inference."""
    class_, component, _ = TEACHERS[name]
    return class_.from_pretrained(ROOT / "cli/teachers" / name, subfolder=component).eval().requires_grad_(False)


def plan(name, model, kept=(), kernel_sizes=(3, 5, 7)):
    """The entries of deltaconv.json for all layers but the kept ones; kernel sizes take turns."""
    found = [(path, module) for path, module in model.named_modules() if hasattr(module, "attn1")]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    found.sort(key=lambda layer: order.get(layer[0].split(".")[0], 0))
    return [
        {
            "name": path,
            "width": module.attn1.to_q.in_features,
            "kernel_size": kernel_sizes[index % len(kernel_sizes)],
            "scales": [1.0, 0.5],
            "gate": TEACHERS[name][2],
            "inter_ratio": 0.5,
        }
        for index, (path, module) in enumerate(found)
        if path not in kept
    ]


def random_blocks(layers, seed=0):
    """Tensors of these layers' blocks, f32, under their published names; outputs are about as large as attention's."""
    generator = torch.Generator().manual_seed(seed)

    def normal(deviation, *shape):
        return torch.randn(shape, generator=generator) * deviation

    tensors = {}
    for layer in layers:
        channels, kernel_size, scales = layer["width"], layer["kernel_size"], len(layer["scales"])
        inner = int(channels * layer["inter_ratio"])
        at = f"{layer['name']}.conv1."
        # Makes a·b·√(d/2) about as large as a·sigmoid(b).
        of_hidden = 1.0 if layer["gate"] == "sigmoid" else (inner / 2) ** -0.25
        tensors[f"{at}conv_up.weight"] = normal(of_hidden * channels**-0.5, inner, channels)
        tensors[f"{at}conv_up.bias"] = normal(0.1, inner)
        for scale in range(scales):
            tensors[f"{at}gates.{scale}.conv_spatial.weight"] = normal(1 / kernel_size, kernel_size, kernel_size, inner)
        tensors[f"{at}conv_out.weight"] = normal(0.5 * (scales * inner / 2) ** -0.5, channels, scales * (inner // 2))
        tensors[f"{at}conv_out.bias"] = normal(0.1, channels)
        tensors[f"{at}conv_pool.weight"] = normal(0.5 * channels**-0.5, channels, channels)
        tensors[f"{at}conv_pool.bias"] = normal(0.1, channels)
    return tensors


def description(name, layers):
    """deltaconv.json."""
    teacher = {"class": TEACHERS[name][0].__name__, "digest": "0" * 64}
    return {"format_version": 1, "teacher": teacher, "layers": layers}


def write_output(folder, name, layers, tensors):
    """An output: deltaconv.json, blocks.safetensors, and the merged model beside its configuration."""
    _, component, _ = TEACHERS[name]
    teacher = ROOT / "cli/teachers" / name / component
    (folder / component).mkdir(parents=True, exist_ok=True)
    (folder / "deltaconv.json").write_text(json.dumps(description(name, layers), indent=2))
    save_file(tensors, folder / "blocks.safetensors", {"format": "pt"})
    (folder / component / "config.json").write_bytes((teacher / "config.json").read_bytes())
    weights = "diffusion_pytorch_model.safetensors"
    replaced = tuple(f"{layer['name']}.attn1." for layer in layers)
    frozen = {key: value for key, value in load_file(teacher / weights).items() if not key.startswith(replaced)}
    save_file(tensors | frozen, folder / component / weights, {"format": "pt"})


def inputs(height=32, width=32, batch=2, seed=1):
    """What both teachers are called with: latent [B, 3, H, W], timestep [B], encoder_hidden_states [B, 4, 64]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "latent": torch.randn((batch, 3, height, width), generator=generator),
        "timestep": torch.tensor([601, 37])[:batch],
        "encoder_hidden_states": torch.randn((batch, 4, 64), generator=generator) * 0.5,
    }


def call(model, latent, timestep, encoder_hidden_states, **kwargs):
    """The model's output [B, channels, H, W] in the dtype of its weights."""
    dtype, device = next(p.dtype for p in model.parameters() if p.is_floating_point()), latent.device
    prompts = encoder_hidden_states.to(device, dtype)
    return model(latent.to(dtype), timestep=timestep, encoder_hidden_states=prompts, return_dict=False, **kwargs)[0]
