"""Puts a converted model's blocks into a diffusers pipeline.

    from deltaconv_diffusers import apply_deltaconv
    apply_deltaconv(pipe, ".../output")

`pipe` is a loaded pipeline, or a bare UNet2DConditionModel or PixArtTransformer2DModel, of the model that was converted
or of any fine-tune of it: the blocks fit all of them, and the rest of the weights stay the pipeline's own. Needs torch
and safetensors, and a diffusers that has the pipeline's class.

The layers that deltaconv.json lists get a ΔConvBlock (arXiv 2504.21292) as `<layer>.conv1`, under its published tensor
names, so that `save_pretrained` writes what `output/` holds. `<layer>.attn1` stays as a module without weights that
calls it. Layers that deltaconv.json doesn't list keep their attention.

What holds:
- f32, f16 and bf16, also by a later `pipe.to(...)`, on any device. The gate and what sums it up run in f32, since f16
  overflows there; autocast is off inside a block.
- Any size and aspect whose maps leave a pixel at the smallest scale: a block learns its map's height and width from the
  call of the module around it.
- `attn_processors`, `set_attn_processor`, `enable_xformers_memory_efficient_attention`, attention slicing and
  `fuse_qkv_projections` see the same names as before. A processor set on a replaced attn1 is kept and never called; one
  that does more than plain attention gives a warning.
- IP-Adapter and whatever else works on attn2; ControlNet and T2I-Adapter, which add to the residuals.
- LoRA, loaded before or after: what it holds for other layers works. What it holds for a replaced attn1 has no effect.
  Targets named by hand as `conv1` or `conv_out` would match parts of blocks too: give their full names.
- deepcopy, pickle, gradient checkpointing, `enable_model_cpu_offload`. Sequential and group offload, layerwise casting,
  caches and torch.compile come after apply_deltaconv; it refuses a model that has them already.

What doesn't, on replaced layers: whatever acts on self-attention (reference-only control, perturbed-attention guidance,
token merging, prompt-to-prompt's self-attention maps) and attention masks, which are an error. Nor do
`ControlNetModel.from_unet` of a converted model, nn.DataParallel, and several threads that call one model with
different sizes at once.
"""

import json
import math
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

__all__ = ["DeltaConvBlock", "DeltaConvError", "apply_deltaconv"]

FORMAT_VERSION = 1
# Class of the denoiser → its name in pipelines and folders.
COMPONENTS = {"UNet2DConditionModel": "unet", "PixArtTransformer2DModel": "transformer"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STORED_DTYPES = ("F32", "F16", "BF16")
# Processors that compute the same attention, each in its way: nothing is lost where they aren't called.
PLAIN_PROCESSORS = {
    "AttnProcessor",
    "AttnProcessor2_0",
    "AttnProcessorNPU",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "XLAFlashAttnProcessor2_0",
}


class DeltaConvError(ValueError):
    """A folder or a model that apply_deltaconv can't use; the model is as it was."""


class LinearF32(nn.Linear):
    """A linear layer that computes in f32, whatever its weights are stored in. Returns f32."""

    def forward(self, x):
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class DepthwiseGate(nn.Module):
    """Depthwise K×K and the gate of one scale: [B, d, H, W] to [B, d/2, H, W] in f32."""

    class Spatial(nn.Module):
        """Holds `weight` [K, K, d]; zero padding, no bias. [B, d, H, W] to the same shape and dtype."""

        def __init__(self, inner, kernel_size):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(kernel_size, kernel_size, inner))

        def forward(self, h):
            kernel_size, _, inner = self.weight.shape
            weight = self.weight.permute(2, 0, 1).unsqueeze(1).to(h.dtype)
            return F.conv2d(h, weight, padding=kernel_size // 2, groups=inner)

    def __init__(self, inner, kernel_size, gate):
        super().__init__()
        self.gate = gate
        self.conv_spatial = self.Spatial(inner, kernel_size)

    def forward(self, h):
        a, b = self.conv_spatial(h).float().chunk(2, dim=1)
        return a * b * math.sqrt(a.shape[1]) if self.gate == "scaled" else a * torch.sigmoid(b)


class DeltaConvBlock(nn.Module):
    """The ΔConvBlock of arXiv 2504.21292, channels last: x [B, H, W, C] to the same shape and dtype.

    With h = conv_up(x), C → d: for each scale s, h pooled to (⌊H·s⌋, ⌊W·s⌋) goes through a depthwise K×K whose halves
    a, b make a·b·√(d/2) ("scaled") or a·sigmoid(b) ("sigmoid"), resized bilinearly to H×W. The result: conv_out of all
    scales' channels, plus conv_pool of x's mean over the map.
    """

    def __init__(self, channels, kernel_size, scales=(1.0, 0.5), gate="scaled", inter_ratio=0.5):
        super().__init__()
        inner = int(channels * inter_ratio)
        self.scales = tuple(scales)
        self.conv_up = nn.Linear(channels, inner)
        self.gates = nn.ModuleList(DepthwiseGate(inner, kernel_size, gate) for _ in self.scales)
        self.conv_out = LinearF32(len(self.scales) * (inner // 2), channels)
        self.conv_pool = LinearF32(channels, channels)

    def forward(self, x):
        height, width = x.shape[1:3]
        # Autocast would take the gate and its sums to f16 again.
        with torch.autocast(x.device.type, enabled=False):
            h = self.conv_up(x).permute(0, 3, 1, 2)
            parts = []
            for scale, gate in zip(self.scales, self.gates):
                if scale == 1.0:
                    parts.append(gate(h))
                    continue
                pooled = F.adaptive_avg_pool2d(h, self.scaled_map(height, width, scale))
                parts.append(F.interpolate(gate(pooled), (height, width), mode="bilinear", align_corners=False))
            mixed = self.conv_out(torch.cat(parts, dim=1).permute(0, 2, 3, 1))
            y = mixed + self.conv_pool(x.float().mean(dim=(1, 2), keepdim=True))
        return y.to(x.dtype)

    @staticmethod
    def scaled_map(height, width, scale):
        """(⌊H·s⌋, ⌊W·s⌋). DeltaConvError where nothing is left of the map."""
        rows, columns = int(height * scale), int(width * scale)
        if rows == 0 or columns == 0:
            raise DeltaConvError(f"scale {scale:g} leaves no pixel of a {height}×{width} map; use a larger picture")
        return rows, columns


class MapSize:
    """Rows and columns of the maps that some layers get, kept by a forward pre-hook of the module around them.

    An object and not a closure, so that a deep copy of the model records into its own.
    """

    def __init__(self, patch_size):
        self.patch_size = patch_size
        self.height = self.width = None

    def __call__(self, module, args, kwargs):
        map_ = args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "latent"]
        self.height, self.width = (side // self.patch_size for side in map_.shape[-2:])


class ReplacedAttention(nn.Module):
    """Stands where a layer's attention stood: [B, H·W, C], rows first, to the same shape and dtype."""

    def __init__(self, layer, block, map_size, processor):
        super().__init__()
        # Not registered: the block's weights are the layer's `conv1`, and nobody else's.
        self.__dict__["block"] = block
        self.layer = layer
        self.map_size = map_size
        self.processor = processor

    def get_processor(self, return_deprecated_lora=False):
        return self.processor

    def set_processor(self, processor):
        name = type(processor).__name__
        if name not in PLAIN_PROCESSORS:
            warnings.warn(f"{self.layer}.attn1 is a ΔConvBlock and has no attention: {name} has no effect there")
        if not isinstance(processor, nn.Module):
            self._modules.pop("processor", None)
        self.processor = processor

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        batch, length, channels = hidden_states.shape
        height, width = self.map_size.height, self.map_size.width
        if encoder_hidden_states is not None or attention_mask is not None:
            what = "attention_mask" if encoder_hidden_states is None else "encoder_hidden_states"
            raise DeltaConvError(f"{self.layer}.attn1 is a ΔConvBlock, which takes no {what}; leave it out")
        if height is None or height * width != length:
            raise DeltaConvError(
                f"{self.layer}.attn1 got {length} positions, but the model was called with a map of {height}×{width}: "
                "call the whole model, and turn off what merges or splits its tokens"
            )
        y = self.block(hidden_states.reshape(batch, height, width, channels))
        return y.reshape(batch, length, channels)


def apply_deltaconv(pipe, folder):
    """Replaces the self-attention that `folder`, a job's `output`, has blocks for, in place. Returns `pipe`.

    Blocks come to the device and dtype of the layer that they replace. Raises DeltaConvError for a folder that is no
    output, for blocks whose names, shapes, dtypes or values are not what they should be, and for a model that they
    don't fit; everything is checked before anything is changed.
    """
    folder = Path(folder)
    description = read_description(folder)
    layers = description["layers"]
    model = find_model(pipe, description["class"])
    for layer in layers:
        check_layer(model, layer)
    weights = read_blocks(folder, description)
    blocks = [make_block(model, layer, weights.pop(layer["name"])) for layer in layers]

    map_sizes = {}
    for layer, block in zip(layers, blocks):
        put_block(model, layer["name"], block, map_sizes)
    return pipe


def read_description(folder):
    """deltaconv.json of an output: {"class": str, "layers": [...]}, every field checked."""
    path = folder / "deltaconv.json"
    if not path.is_file():
        raise DeltaConvError(f"{folder} is not the output of a conversion: it has no deltaconv.json; {where(folder)}")
    try:
        json_ = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeltaConvError(f"{path} can't be read ({error}); copy the output again") from error

    def refuse(field, value, expected):
        raise DeltaConvError(f"{path}: {field} is {str(value)[:200]!r}, expected {expected}; copy the output again")

    def number(value):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    def whole(value):
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    if not isinstance(json_, dict):
        refuse("the whole", json_, "an object")
    if json_.get("format_version") != FORMAT_VERSION:
        found = json_.get("format_version")
        raise DeltaConvError(
            f"{path}: format_version is {found!r}, this file reads {FORMAT_VERSION}; "
            "use the deltaconv_diffusers.py that lies in the same folder"
        )
    teacher = json_.get("teacher")
    class_ = teacher.get("class") if isinstance(teacher, dict) else None
    if class_ not in COMPONENTS:
        refuse("teacher.class", class_, " or ".join(COMPONENTS))
    layers = json_.get("layers")
    if not isinstance(layers, list) or not layers:
        refuse("layers", layers, "a list of layers")
    names = set()
    for index, layer in enumerate(layers):
        at = f"layers[{index}]"
        if not isinstance(layer, dict):
            refuse(at, layer, "an object")
        name, width, kernel_size = layer.get("name"), layer.get("width"), layer.get("kernel_size")
        scales, gate, ratio = layer.get("scales"), layer.get("gate"), layer.get("inter_ratio")
        if not isinstance(name, str) or not name or name in names:
            refuse(f"{at}.name", name, "a module path that occurs once")
        names.add(name)
        if not whole(width):
            refuse(f"{at}.width", width, "a number of channels")
        if not whole(kernel_size) or kernel_size % 2 == 0:
            refuse(f"{at}.kernel_size", kernel_size, "an odd number")
        if not isinstance(scales, list) or scales[:1] != [1] or not all(number(s) and 0 < s <= 1 for s in scales):
            refuse(f"{at}.scales", scales, "a list of numbers within (0, 1] that begins with 1")
        if gate not in ("scaled", "sigmoid"):
            refuse(f"{at}.gate", gate, "scaled or sigmoid")
        if not number(ratio) or int(width * ratio) < 2 or int(width * ratio) % 2 == 1:
            refuse(f"{at}.inter_ratio", ratio, f"a number that makes an even inner width of {width} channels")
    return {"class": class_, "layers": layers}


def where(folder):
    """What to do about a folder that has no deltaconv.json."""
    if (folder / "output" / "deltaconv.json").is_file():
        return f"pass {folder / 'output'}"
    if not folder.is_dir():
        return "it isn't a folder here; download the job's output and pass its path"
    return "pass the folder `output` that the job wrote"


def find_model(pipe, class_):
    """The denoiser in `pipe`, or `pipe` itself."""
    found = [pipe] if isinstance(pipe, nn.Module) else [getattr(pipe, name, None) for name in COMPONENTS.values()]
    found = [model for model in found if model is not None]
    for model in found:
        if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
            raise DeltaConvError("the model is compiled already; call apply_deltaconv before torch.compile")
    for model in found:
        if any(base.__name__ == class_ for base in type(model).__mro__):
            check_hooks(model)
            return model
    names = " and ".join(type(model).__name__ for model in found) or "no denoiser"
    raise DeltaConvError(
        f"the blocks are of a {class_}, but {type(pipe).__name__} has {names}; load the pipeline that was converted"
    )


def check_hooks(model):
    """Refuses a model whose submodules are moved, cast or skipped by hooks, which the blocks would lack."""
    for name, module in model.named_modules():
        # accelerate's hook on the whole model (model offload) moves whatever is in it, the blocks too.
        if hasattr(module, "_diffusers_hook") or (name and hasattr(module, "_hf_hook")):
            raise DeltaConvError(
                f"{name or type(model).__name__} has hooks already (offload, casting or cache); call apply_deltaconv "
                "right after loading, before enable_sequential_cpu_offload, enable_group_offload, "
                "enable_layerwise_casting or enable_cache, and without device_map"
            )


def check_layer(model, layer):
    """Checks that the model has this layer, with self-attention of this width."""
    name = layer["name"]
    try:
        attention = model.get_submodule(name).attn1
    except AttributeError:
        with_attention = [n for n, m in model.named_modules() if hasattr(getattr(m, "attn1", None), "to_q")]
        raise DeltaConvError(
            f"the model has no layer {name}; it has {len(with_attention)} with attention, such as "
            f"{', '.join(with_attention[:3]) or 'none'}: load the model that was converted, or a fine-tune of it"
        ) from None
    if isinstance(attention, ReplacedAttention):
        raise DeltaConvError(f"{name} is converted already; load the pipeline again to convert it with other blocks")
    width = attention.to_q.in_features
    if width != layer["width"]:
        raise DeltaConvError(
            f"{name} has {width} channels, its block {layer['width']}; load the model that was converted"
        )
    if attention.to_k.in_features != width or getattr(model.get_submodule(name), "only_cross_attention", False):
        raise DeltaConvError(
            f"{name}.attn1 is cross-attention, which no block replaces; load the model that was converted"
        )
    map_source(model, name)


def map_source(model, name):
    """The module around a layer whose input is [B, _, H, W], and how many rows of that make one of the layer's map."""
    around, _, _ = name.rpartition(".transformer_blocks.")
    if around:
        return model.get_submodule(around), 1
    if not hasattr(model, "pos_embed"):
        raise DeltaConvError(
            f"{name} lies in no transformer, so its map's size isn't known; load the model that was converted"
        )
    return model.pos_embed, model.config.patch_size


def shapes(layer):
    """Name → shape of every tensor of a layer's block, without `<layer>.conv1.`."""
    channels, kernel_size, scales = layer["width"], layer["kernel_size"], layer["scales"]
    inner = int(channels * layer["inter_ratio"])
    found = {"conv_up.weight": [inner, channels], "conv_up.bias": [inner]}
    for scale in range(len(scales)):
        found[f"gates.{scale}.conv_spatial.weight"] = [kernel_size, kernel_size, inner]
    found["conv_out.weight"] = [channels, len(scales) * (inner // 2)]
    found["conv_pool.weight"] = [channels, channels]
    found["conv_out.bias"] = found["conv_pool.bias"] = [channels]
    return found


def read_blocks(folder, description):
    """Layer → its block's tensors in f32, from blocks.safetensors or, without it, from the merged model."""
    layers = description["layers"]
    alone = folder / "blocks.safetensors"
    merged = folder / COMPONENTS[description["class"]] / WEIGHTS
    path = next((path for path in (alone, merged) if path.is_file()), None)
    if path is None:
        raise DeltaConvError(
            f"{folder} has neither blocks.safetensors nor {merged.relative_to(folder)}; copy the output again"
        )

    expected = {}
    for layer in layers:
        expected.update({f"{layer['name']}.conv1.{name}": shape for name, shape in shapes(layer).items()})
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            stored = list(file.keys())
            if path != alone:
                # ResNets have a conv1 too, but no transformer block does.
                stored = [name for name in stored if ".conv1." in name and "transformer_blocks." in name]
            missing, unknown = sorted(expected.keys() - set(stored)), sorted(set(stored) - expected.keys())
            if missing:
                raise DeltaConvError(f"{path} lacks {missing[0]} ({len(missing)} missing); copy the output again")
            if unknown:
                raise DeltaConvError(
                    f"{path} holds {unknown[0]} ({len(unknown)} such), which deltaconv.json doesn't list: "
                    "it belongs to another conversion; copy the output again"
                )
            for name, shape in expected.items():
                view = file.get_slice(name)
                if list(view.get_shape()) != shape:
                    raise DeltaConvError(
                        f"{path}: {name} has shape {list(view.get_shape())}, deltaconv.json makes it {shape}; "
                        "copy the output again"
                    )
                if view.get_dtype() not in STORED_DTYPES:
                    raise DeltaConvError(
                        f"{path}: {name} is {view.get_dtype()}, expected {' or '.join(STORED_DTYPES)}; copy it again"
                    )
            for name in expected:
                tensors[name] = file.get_tensor(name).float()
                check_finite(tensors[name], f"{path}: {name}", "copy the output again")
    except (OSError, SafetensorError) as error:
        raise DeltaConvError(f"{path} can't be read ({error}); copy the output again") from error
    return {
        layer["name"]: {name: tensors[f"{layer['name']}.conv1.{name}"] for name in shapes(layer)} for layer in layers
    }


def check_finite(tensor, name, next_step):
    finite = torch.isfinite(tensor)
    if not finite.all():
        value = tensor[~finite][0].item()
        raise DeltaConvError(f"{name} holds {value} ({(~finite).sum().item()} such values); {next_step}")


def make_block(model, layer, weights):
    """The layer's block with its weights, at the device and in the dtype of the layer that it goes into."""
    of_layer = model.get_submodule(layer["name"])
    weight = next((p for p in of_layer.attn1.parameters() if p.dtype in DTYPES), None)
    if weight is None:
        found = next(of_layer.attn1.parameters()).dtype
        raise DeltaConvError(
            f"{layer['name']} is in {found}; blocks run in f32, f16 or bf16: load the pipeline in one of them"
        )
    # attn1 itself is not there where the pipeline was loaded from the converted model.
    device = next((p.device for p in of_layer.parameters() if not p.is_meta), None)
    if device is None:
        raise DeltaConvError(f"{layer['name']} has no weights yet (meta device); load them before the blocks")
    with torch.device("meta"):
        arguments = [layer[field] for field in ("kernel_size", "scales", "gate", "inter_ratio")]
        block = DeltaConvBlock(layer["width"], *arguments)
    for name in weights:
        weights[name] = weights[name].to(weight.dtype)
        check_finite(
            weights[name], f"{layer['name']}.conv1.{name} in {weight.dtype}", "load the pipeline in bf16 or f32"
        )
    block.load_state_dict(weights, assign=True)
    return block.to(device).train(of_layer.attn1.training).requires_grad_(weight.requires_grad)


def put_block(model, name, block, map_sizes):
    """Puts a block in a layer's place; `map_sizes`: what other layers learn their map's size from, by its source."""
    source, patch_size = map_source(model, name)
    if source not in map_sizes:
        map_sizes[source] = MapSize(patch_size)
        source.register_forward_pre_hook(map_sizes[source], with_kwargs=True)
    layer = model.get_submodule(name)
    layer.attn1 = ReplacedAttention(name, block, map_sizes[source], layer.attn1.get_processor())
    layer.conv1 = block
