"""Records forward passes of diffusers for `cargo test -p deltaconv-worker --test golden`.

    pip install -r worker/tests/requirements.txt
    python worker/tests/reference.py OUT [--size small|wide|full] [NAME ...]
    DELTACONV_GOLDEN=OUT cargo test -p deltaconv-worker --test golden

Models of random weights: `small` ones are what the repository holds, `wide` ones have the published widths and one block a
level, `full` ones are the published models but for their weights. Each is written to OUT/teachers/NAME, and its recording
to OUT/NAME.safetensors: the arguments of `forward`, its output `sample`, and every layer's `<layer>.attn1.input` and
`.output` [B, L, C], all f32.
"""

import argparse
import pathlib

import torch
from diffusers import PixArtTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"

# By size: the configuration, and height and width of the latents.
UNETS = {
    "sd15": {
        "common": dict(
            down_block_types=[CROSS_DOWN] * 3 + [DOWN], up_block_types=[UP] + [CROSS_UP] * 3, attention_head_dim=8
        ),
        "small": (dict(block_out_channels=[16, 24, 32, 32], norm_num_groups=8, cross_attention_dim=12), (16, 24)),
        "wide": (dict(cross_attention_dim=768, layers_per_block=1), (16, 24)),
        "full": (dict(cross_attention_dim=768), (64, 64)),
    },
    "sd21": {
        "common": dict(
            down_block_types=[CROSS_DOWN] * 3 + [DOWN],
            up_block_types=[UP] + [CROSS_UP] * 3,
            use_linear_projection=True,
            upcast_attention=True,
        ),
        "small": (
            dict(
                block_out_channels=[16, 24, 32, 32],
                norm_num_groups=8,
                cross_attention_dim=12,
                attention_head_dim=[2, 3, 4, 4],
            ),
            (16, 16),
        ),
        "wide": (
            dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], layers_per_block=1),
            (16, 24),
        ),
        "full": (dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20]), (96, 96)),
    },
    "sdxl": {
        "common": dict(
            down_block_types=[DOWN, CROSS_DOWN, CROSS_DOWN],
            up_block_types=[CROSS_UP, CROSS_UP, UP],
            use_linear_projection=True,
            addition_embed_type="text_time",
        ),
        "small": (
            dict(
                block_out_channels=[8, 16, 24],
                norm_num_groups=4,
                cross_attention_dim=20,
                attention_head_dim=[2, 2, 3],
                transformer_layers_per_block=[1, 1, 2],
                layers_per_block=1,
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 10,
            ),
            (16, 12),
        ),
        "wide": (
            dict(
                block_out_channels=[320, 640, 1280],
                cross_attention_dim=2048,
                attention_head_dim=[5, 10, 20],
                transformer_layers_per_block=[1, 1, 2],
                layers_per_block=1,
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            (24, 16),
        ),
        "full": (
            dict(
                block_out_channels=[320, 640, 1280],
                cross_attention_dim=2048,
                attention_head_dim=[5, 10, 20],
                transformer_layers_per_block=[1, 2, 10],
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            (128, 128),
        ),
    },
}
PIXARTS = {
    # With resolution and aspect ratio, as PixArt-α at 1024.
    "pixart-alpha": {
        "common": dict(use_additional_conditions=True),
        "small": (
            dict(num_attention_heads=3, attention_head_dim=8, cross_attention_dim=24, num_layers=3, sample_size=16),
            (12, 20),
        ),
        "wide": (dict(num_layers=3), (16, 24)),
        "full": (dict(), (128, 128)),
    },
    "pixart-sigma": {
        "common": dict(use_additional_conditions=False, interpolation_scale=2),
        "small": (
            dict(num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24, num_layers=2, sample_size=16),
            (16, 16),
        ),
        "wide": (dict(num_layers=3), (24, 16)),
        "full": (dict(), (128, 128)),
    },
}
TOKENS = 7


def record(model, out, name, arguments, call):
    """Runs `call` and writes the model and what went through it."""
    recorded = dict(arguments)
    hooks = []
    for path, module in model.named_modules():
        if path.endswith(".attn1"):

            def hook(_, inputs, kwargs, output, path=path):
                given = inputs[0] if inputs else kwargs["hidden_states"]
                recorded[f"{path}.input"], recorded[f"{path}.output"] = given, output

            hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    with torch.no_grad():
        recorded["sample"] = call()
    folder = "unet" if isinstance(model, UNet2DConditionModel) else "transformer"
    model.save_pretrained(out / "teachers" / name / folder)
    save_file({key: value.contiguous().clone() for key, value in recorded.items()}, out / f"{name}.safetensors")
    print(f"{name}: {len(hooks)} layers, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


def unet(name, size, out):
    family = UNETS[name]
    config, (height, width) = family[size]
    torch.manual_seed(0)
    model = UNet2DConditionModel(**family["common"], **config).eval()
    arguments = {
        "latent": torch.randn(2, 4, height, width),
        "timestep": torch.tensor([17, 801]),
        "encoder_hidden_states": torch.randn(2, TOKENS, model.config.cross_attention_dim),
    }
    added = {}
    if model.config.addition_embed_type == "text_time":
        ids = [[height * 8.0, width * 8.0, 0.0, 0.0, height * 8.0, width * 8.0], [512.0, 640.0, 8.0, 0.0, 512.0, 640.0]]
        pooled = model.config.projection_class_embeddings_input_dim - 6 * model.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(2, pooled), "time_ids": torch.tensor(ids)}
    mask = torch.ones(2, TOKENS)
    mask[1, 4:] = 0
    arguments["encoder_attention_mask"] = mask

    def call():
        return model(
            arguments["latent"],
            arguments["timestep"],
            encoder_hidden_states=arguments["encoder_hidden_states"],
            encoder_attention_mask=mask,
            added_cond_kwargs=added or None,
        ).sample

    record(model, out, name, arguments | added, call)


def pixart(name, size, out):
    family = PIXARTS[name]
    config, (height, width) = family[size]
    torch.manual_seed(0)
    captions = 4096 if size != "small" else 20
    model = PixArtTransformer2DModel(**family["common"], **config, caption_channels=captions).eval()
    mask = torch.ones(2, TOKENS)
    mask[1, 3:] = 0
    arguments = {
        "latent": torch.randn(2, 4, height, width),
        "timestep": torch.tensor([17, 801]),
        "encoder_hidden_states": torch.randn(2, TOKENS, captions),
        "encoder_attention_mask": mask,
    }
    added = {}
    if model.config.use_additional_conditions:
        added = {
            "resolution": torch.tensor([[height * 8.0, width * 8.0], [512.0, 640.0]]),
            "aspect_ratio": torch.tensor([[height / width], [0.8]]),
        }

    def call():
        return model(
            arguments["latent"],
            encoder_hidden_states=arguments["encoder_hidden_states"],
            encoder_attention_mask=mask,
            timestep=arguments["timestep"],
            added_cond_kwargs=added or {"resolution": None, "aspect_ratio": None},
        ).sample

    record(model, out, name, arguments | added, call)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--size", choices=["small", "wide", "full"], default="small")
    parser.add_argument("names", nargs="*", metavar="NAME", default=[*UNETS, *PIXARTS])
    chosen = parser.parse_intermixed_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name in chosen.names:
        (unet if name in UNETS else pixart)(name, chosen.size, chosen.out)


if __name__ == "__main__":
    main()
