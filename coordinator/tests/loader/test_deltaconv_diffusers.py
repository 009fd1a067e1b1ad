"""The loader in the real diffusers, on the CPU.

pip install -r coordinator/tests/loader/requirements.txt
python -m unittest discover coordinator/tests/loader
"""

import copy
import json
import math
import pickle
import tempfile
import unittest
import warnings
from pathlib import Path

import accelerate
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fixture

loader = fixture.load_loader()
GOLDEN_BLOCKS = fixture.ROOT / "kernels/tests/golden"
GOLDEN_STUDENTS = fixture.ROOT / "worker/tests/golden"
KEPT = {"tiny-unet": ("mid_block.attentions.0.transformer_blocks.0",), "tiny-pixart": ("transformer_blocks.3",)}
TEACHERS = {name: fixture.load_teacher(name) for name in fixture.TEACHERS}
SIZES = [(16, 16), (12, 20), (20, 12)]


def relative(found, expected):
    """Greatest difference over the greatest value."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def teacher(name):
    return copy.deepcopy(TEACHERS[name])


def block_by_pixel_shifts(layer, tensors, x):
    """The block as DESIGN writes it, x [B, H, W, C], without a convolution and without the loader."""
    at = {
        key.removeprefix(f"{layer['name']}.conv1."): value
        for key, value in tensors.items()
        if layer["name"] + "." in key
    }
    height, width = x.shape[1:3]
    h = x @ at["conv_up.weight"].T + at["conv_up.bias"]
    parts = []
    for index, scale in enumerate(layer["scales"]):
        size = (math.floor(height * scale), math.floor(width * scale))
        small = F.adaptive_avg_pool2d(h.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
        weight = at[f"gates.{index}.conv_spatial.weight"]
        reach = layer["kernel_size"] // 2
        padded = F.pad(small, (0, 0, reach, reach, reach, reach))
        g = torch.zeros_like(small)
        for row in range(layer["kernel_size"]):
            for column in range(layer["kernel_size"]):
                g += padded[:, row : row + size[0], column : column + size[1]] * weight[row, column]
        half = g.shape[-1] // 2
        a, b = g[..., :half], g[..., half:]
        p = a * b * math.sqrt(half) if layer["gate"] == "scaled" else a / (1 + torch.exp(-b))
        p = F.interpolate(p.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False)
        parts.append(p.permute(0, 2, 3, 1))
    mixed = torch.cat(parts, -1) @ at["conv_out.weight"].T + at["conv_out.bias"]
    return mixed + x.mean((1, 2), keepdim=True) @ at["conv_pool.weight"].T + at["conv_pool.bias"]


def reference(model, layers, tensors, height, width):
    """The model with each layer's attention computed by `block_by_pixel_shifts`, for one size of latent."""
    stages = len(getattr(model.config, "block_out_channels", ()))

    def halvings(name):
        stage, _, rest = name.partition(".")
        index = int(rest.split(".")[0]) if stage != "mid_block" else 0
        return {
            "down_blocks": index,
            "mid_block": stages - 1,
            "up_blocks": stages - 1 - index,
            "transformer_blocks": 1,
        }[stage]

    for layer in layers:
        rows, columns = (side >> halvings(layer["name"]) for side in (height, width))

        def forward(hidden_states, *_, layer=layer, rows=rows, columns=columns, **__):
            x = hidden_states.unflatten(1, (rows, columns))
            return block_by_pixel_shifts(layer, tensors, x).flatten(1, 2)

        model.get_submodule(layer["name"]).attn1.forward = forward
    return model


def pipeline(unet):
    """A pipeline around a UNet alone; it is called with embeddings and gives latents."""
    scheduler = DDIMScheduler.from_pretrained(fixture.ROOT / "cli/teachers/tiny-unet", subfolder="scheduler")
    none = dict.fromkeys(["vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"])
    return StableDiffusionPipeline(unet=unet, scheduler=scheduler, requires_safety_checker=False, **none)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "output"
        torch.manual_seed(0)

    def output(self, name, kept=()):
        """A new output's folder, layers and tensors."""
        model = TEACHERS[name]
        layers = fixture.plan(name, model, kept)
        tensors = fixture.random_blocks(layers)
        fixture.write_output(self.folder, name, layers, tensors)
        return layers, tensors

    def converted(self, name, kept=()):
        self.output(name, kept)
        return loader.apply_deltaconv(teacher(name), self.folder)

    def assert_close(self, found, expected, limit):
        error = relative(found, expected)
        self.assertTrue(error <= limit, f"relative error {error:.2g}, at most {limit:g} expected")


class Numbers(Case):
    def setUp(self):
        super().setUp()
        no_grad = torch.no_grad()
        no_grad.__enter__()
        self.addCleanup(no_grad.__exit__, None, None, None)

    def test_golden_blocks(self):
        cases = json.loads((GOLDEN_BLOCKS / "blocks.json").read_text())
        self.assertEqual({case["gate"] for case in cases}, {"scaled", "sigmoid"})
        for case in cases:
            tensors = load_file(GOLDEN_BLOCKS / case["file"])
            block = loader.DeltaConvBlock(case["channels"], case["kernel_size"], case["scales"], case["gate"])
            block.load_state_dict({name: tensors[name] for name in block.state_dict()})
            with self.subTest(case["file"]), torch.enable_grad():
                x = tensors["x"].requires_grad_()
                y = block(x)
                self.assert_close(y, tensors["y"], 1e-5)
                F.mse_loss(y, tensors["target"]).backward()
                self.assert_close(x.grad, tensors["grad.x"], 1e-4)

    def test_whole_models_of_every_aspect_and_with_kept_layers(self):
        for name in fixture.TEACHERS:
            for kept in [(), KEPT[name]]:
                layers, tensors = self.output(name, kept)
                model = loader.apply_deltaconv(teacher(name), self.folder)
                for height, width in SIZES:
                    with self.subTest(name, kept=kept, height=height, width=width):
                        inputs = fixture.inputs(height, width)
                        expected = fixture.call(reference(teacher(name), layers, tensors, height, width), **inputs)
                        self.assert_close(fixture.call(model, **inputs), expected, 1e-5)
                        self.assertGreater(relative(fixture.call(TEACHERS[name], **inputs), expected), 1e-2)

    def test_golden_students(self):
        for name in fixture.TEACHERS:
            path = GOLDEN_STUDENTS / f"student-{name}.safetensors"
            tensors = load_file(path)
            with safe_open(path, framework="pt") as file:
                layers = json.loads(file.metadata()["deltaconv.json"])["layers"]
            blocks = {key: value for key, value in tensors.items() if ".conv1." in key}
            fixture.write_output(self.folder, name, layers, blocks)
            model = loader.apply_deltaconv(teacher(name), self.folder)
            for prefix in ["", "wide."]:
                inputs = {key: tensors[prefix + key] for key in ["latent", "timestep", "encoder_hidden_states"]}
                with self.subTest(name, prefix=prefix):
                    self.assert_close(fixture.call(model, **inputs), tensors[f"{prefix}sample"], 1e-5)

    def test_half_precision_before_or_after(self):
        for name in fixture.TEACHERS:
            expected = fixture.call(self.converted(name), **fixture.inputs())
            for dtype, limit in [(torch.float16, 3e-3), (torch.bfloat16, 3e-2)]:
                before = loader.apply_deltaconv(teacher(name).to(dtype), self.folder)
                after = loader.apply_deltaconv(teacher(name), self.folder).to(dtype)
                with self.subTest(name, dtype=dtype):
                    self.assertEqual({p.dtype for p in before.parameters()}, {dtype})
                    found = fixture.call(before, **fixture.inputs())
                    self.assertEqual(found.dtype, dtype)
                    self.assert_close(found, expected, limit)
                    self.assertTrue(torch.equal(found, fixture.call(after, **fixture.inputs())))

    def test_a_gate_beyond_f16(self):
        block = loader.DeltaConvBlock(64, 3)
        layer = {"name": "l", "width": 64, "kernel_size": 3, "scales": [1.0, 0.5], "gate": "scaled", "inter_ratio": 0.5}
        for name, tensor in fixture.random_blocks([layer]).items():
            # conv_up 300 times as large: a·b·√(d/2) is 90 000 times as large, conv_out brings it back.
            factor = {"conv_up": 300, "conv_out": 1 / 90000}.get(name.split(".")[2], 1)
            block.get_parameter(name.removeprefix("l.conv1.")).copy_(tensor * factor)
        x = torch.randn(2, 12, 8, 64)
        expected = block(x)
        self.assertGreater(block.gates[0](block.conv_up(x).permute(0, 3, 1, 2)).max().item(), 65504)
        with torch.autocast("cpu", torch.float16):
            self.assert_close(block(x), expected, 1e-5)
        self.assert_close(block.half()(x.half()), expected, 2e-2)

    def test_blocks_from_the_merged_model(self):
        for name in fixture.TEACHERS:
            expected = fixture.call(self.converted(name, KEPT[name]), **fixture.inputs())
            (self.folder / "blocks.safetensors").unlink()
            model = loader.apply_deltaconv(teacher(name), self.folder)
            with self.subTest(name):
                self.assertTrue(torch.equal(fixture.call(model, **fixture.inputs()), expected))

    def test_state_has_the_published_names(self):
        for name, (_, component, _) in fixture.TEACHERS.items():
            model = self.converted(name, KEPT[name])
            merged = load_file(self.folder / component / loader.WEIGHTS)
            state = model.state_dict()
            with self.subTest(name):
                self.assertEqual(
                    {key: value.shape for key, value in state.items()}, {k: v.shape for k, v in merged.items()}
                )
                self.assertTrue(all(torch.equal(state[key], merged[key]) for key in merged))

    def test_another_fine_tune_keeps_its_weights(self):
        layers, tensors = self.output("tiny-unet")
        fine_tune = teacher("tiny-unet")
        for parameter in fine_tune.parameters():
            parameter.mul_(1.01)
        expected = fixture.call(reference(copy.deepcopy(fine_tune), layers, tensors, 12, 20), **fixture.inputs(12, 20))
        model = loader.apply_deltaconv(fine_tune, self.folder)
        self.assert_close(fixture.call(model, **fixture.inputs(12, 20)), expected, 1e-5)


class Around(Case):
    """What diffusers and others do with a model; each against the reference that had the same done."""

    def both(self, name, kept=()):
        """The loader's model and the reference for 12×20."""
        layers, tensors = self.output(name, kept)
        return loader.apply_deltaconv(teacher(name), self.folder), reference(teacher(name), layers, tensors, 12, 20)

    @torch.no_grad()
    def assert_same(self, found, expected, differs_from=None, **kwargs):
        inputs = fixture.inputs(12, 20)
        value = fixture.call(found, **inputs, **kwargs)
        self.assert_close(value, fixture.call(expected, **inputs, **kwargs), 1e-5)
        if differs_from is not None:
            self.assertGreater(relative(value, fixture.call(differs_from, **inputs)), 1e-3)

    def test_processors(self):
        for name in fixture.TEACHERS:
            names = set(TEACHERS[name].attn_processors)
            model, expected = self.both(name, KEPT[name])
            with self.subTest(name):
                self.assertEqual(set(model.attn_processors), names)
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    model.set_attn_processor(AttnProcessor())
                    model.set_attn_processor(dict.fromkeys(names, None) | {key: AttnProcessor2_0() for key in names})
                    model.fuse_qkv_projections()
                    model.unfuse_qkv_projections()
                self.assert_same(model, expected)
        with self.assertWarnsRegex(UserWarning, r"down_blocks.*attn1.*ControlsAttention has no effect"):
            name = "down_blocks.0.attentions.0.transformer_blocks.0"
            model = self.converted("tiny-unet")
            model.get_submodule(name).attn1.set_processor(type("ControlsAttention", (torch.nn.Module,), {})())
        model.set_attn_processor(AttnProcessor2_0())
        model.set_attention_slice("auto")
        self.assertEqual({type(p).__name__ for p in model.attn_processors.values()} - loader.PLAIN_PROCESSORS, set())

    def lora(self, layers=("attn1", "attn2"), extra=()):
        """A LoRA of the teacher in peft's names, as files hold it."""
        model = TEACHERS["tiny-unet"]
        found = {}
        for name, module in model.named_modules():
            parts = name.split(".")
            if (isinstance(module, torch.nn.Linear) and any(layer in parts for layer in layers)) or name in extra:
                shape = module.weight.shape
                found[f"{name}.lora_A.weight"] = torch.randn(4, *shape[1:]) * 0.2
                found[f"{name}.lora_B.weight"] = torch.randn(shape[0], 4, *[1] * (len(shape) - 2)) * 0.2
        return found

    def test_lora(self):
        other = {"attn2": (), "attn1 and attn2": (), "conv_out": ("conv_out", "down_blocks.0.resnets.0.conv1")}
        for what, extra in other.items():
            weights = self.lora(("attn1", "attn2") if "attn1" in what else ("attn2",), extra)
            model, expected = self.both("tiny-unet", KEPT["tiny-unet"])
            plain = copy.deepcopy(model)
            for unet in (model, expected):
                pipe = pipeline(unet)
                pipe.load_lora_weights({f"unet.{key}": value for key, value in weights.items()}, adapter_name="style")
            with self.subTest(what):
                self.assert_same(model, expected, differs_from=plain)
                blocks = [
                    n for n, m in model.named_modules() if hasattr(m, "lora_A") and "transformer_blocks.0.conv1" in n
                ]
                self.assertEqual(blocks, [])
                for unet in (model, expected):
                    pipeline(unet).set_adapters("style", 0.3)
                self.assert_same(model, expected, differs_from=plain)
                pipe = pipeline(model)
                pipe.fuse_lora()
                self.assert_same(model, expected)
                pipe.unfuse_lora()
                pipe.unload_lora_weights()
                self.assert_same(model, plain)

    def test_lora_before_the_blocks(self):
        weights = self.lora()
        layers, tensors = self.output("tiny-unet")
        model, expected = teacher("tiny-unet"), teacher("tiny-unet")
        for unet in (model, expected):
            unet.load_lora_adapter(weights, prefix=None)
        self.assert_same(loader.apply_deltaconv(model, self.folder), reference(expected, layers, tensors, 12, 20))

    def test_ip_adapter(self):
        weights = {
            "image_proj": {
                "proj.weight": torch.randn(4 * 64, 32),
                "proj.bias": torch.randn(4 * 64),
                "norm.weight": torch.ones(64),
                "norm.bias": torch.zeros(64),
            },
            "ip_adapter": {},
        }
        crosses = [p for p in TEACHERS["tiny-unet"].attn_processors if "attn2" in p]
        for index, name in enumerate(crosses):
            width = TEACHERS["tiny-unet"].get_submodule(name.removesuffix(".processor")).to_q.in_features
            for part in ("k", "v"):
                weights["ip_adapter"][f"{2 * index + 1}.to_{part}_ip.weight"] = torch.randn(width, 64) * 0.2
        model, expected = self.both("tiny-unet", KEPT["tiny-unet"])
        plain = copy.deepcopy(model)
        image = {"image_embeds": [torch.randn(2, 1, 32)]}
        for unet in (model, expected):
            unet._load_ip_adapter_weights([copy.deepcopy(weights)])
        kinds = {name: type(p) for name, p in model.attn_processors.items()}
        self.assertTrue(all((kind is IPAdapterAttnProcessor2_0) == ("attn2" in name) for name, kind in kinds.items()))
        with torch.no_grad():
            inputs = fixture.inputs(12, 20)
            found = fixture.call(model, **inputs, added_cond_kwargs=image)
            self.assert_close(found, fixture.call(expected, **inputs, added_cond_kwargs=image), 1e-5)
            self.assertGreater(relative(found, fixture.call(plain, **inputs)), 1e-3)
        # The first IP-Adapter's own code counts the processors of all layers, attn1's included.
        listed = torch.nn.ModuleList(
            p if isinstance(p, torch.nn.Module) else torch.nn.Module() for p in model.attn_processors.values()
        )
        self.assertEqual(
            [i for i, p in enumerate(listed) if "attn2" in list(kinds)[i]], list(range(1, 2 * len(crosses), 2))
        )

    def test_controlnet(self):
        control = ControlNetModel.from_unet(TEACHERS["tiny-unet"], conditioning_embedding_out_channels=(16,)).eval()
        for parameter in control.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        model, expected = self.both("tiny-unet")
        inputs = fixture.inputs(12, 20)
        with torch.no_grad():
            down, mid = control(
                inputs["latent"],
                inputs["timestep"],
                inputs["encoder_hidden_states"],
                controlnet_cond=torch.randn(2, 3, 12, 20),
                return_dict=False,
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            found = fixture.call(model, **inputs, **residuals)
            self.assert_close(found, fixture.call(expected, **inputs, **residuals), 1e-5)
            self.assertGreater(relative(found, fixture.call(model, **inputs)), 1e-3)

    def test_pipeline(self):
        layers, tensors = self.output("tiny-unet")
        pipe = pipeline(teacher("tiny-unet"))
        self.assertIs(loader.apply_deltaconv(pipe, str(self.folder)), pipe)
        expected = pipeline(reference(teacher("tiny-unet"), layers, tensors, 12, 20))
        embeddings = fixture.inputs()["encoder_hidden_states"]
        pictures = [
            p(
                prompt_embeds=embeddings[:1],
                negative_prompt_embeds=embeddings[1:],
                num_inference_steps=3,
                latents=fixture.inputs(12, 20, 1)["latent"],
                height=12 * 8,
                width=20 * 8,
                output_type="latent",
            ).images
            for p in (pipe, expected)
        ]
        self.assert_close(pictures[0], pictures[1], 1e-4)
        pipe.enable_attention_slicing()
        self.assert_same(pipe.unet, expected.unet)

    @torch.no_grad()
    def test_the_merged_model_itself_as_a_pipeline(self):
        for name, (class_, component, _) in fixture.TEACHERS.items():
            expected = fixture.call(self.converted(name, KEPT[name]), **fixture.inputs(12, 20))
            model = class_.from_pretrained(self.folder, subfolder=component, low_cpu_mem_usage=False)
            with self.subTest(name):
                found = fixture.call(loader.apply_deltaconv(model, self.folder).eval(), **fixture.inputs(12, 20))
                self.assertTrue(torch.equal(found, expected))

    @torch.no_grad()
    def test_copies_are_independent(self):
        for name in fixture.TEACHERS:
            model = self.converted(name)
            wide, high = fixture.inputs(12, 20), fixture.inputs(20, 12)
            expected = [fixture.call(model, **wide), fixture.call(model, **high)]
            for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
                fixture.call(model, **wide)
                found = [fixture.call(copied, **wide), fixture.call(copied, **high)]
                self.assertTrue(all(map(torch.equal, found, expected)))
                for parameter in copied.parameters():
                    parameter.zero_()
                self.assertTrue(torch.equal(fixture.call(model, **wide), expected[0]))

    @torch.no_grad()
    def test_offload_and_casting_afterwards(self):
        for name in fixture.TEACHERS:
            model = self.converted(name)
            expected = fixture.call(model, **fixture.inputs(12, 20))

            def found(model):
                inputs = fixture.inputs(12, 20)
                return model(
                    inputs["latent"],
                    timestep=inputs["timestep"],
                    encoder_hidden_states=inputs["encoder_hidden_states"],
                    return_dict=False,
                )[0]

            offloaded, _ = accelerate.cpu_offload_with_hook(teacher(name), execution_device="cpu")
            with self.subTest(name):
                # What enable_model_cpu_offload and enable_sequential_cpu_offload do, with the CPU for the GPU.
                self.assertTrue(torch.equal(found(loader.apply_deltaconv(offloaded, self.folder)), expected))
                by_layer = accelerate.cpu_offload(copy.deepcopy(model), execution_device="cpu")
                self.assertTrue(all(p.is_meta for p in by_layer.parameters()))
                self.assertTrue(torch.equal(found(by_layer), expected))
                model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
                self.assert_close(found(model), expected, 0.3)

    def test_gradient_checkpointing(self):
        for name in fixture.TEACHERS:
            model = self.converted(name)
            self.assertFalse(any(p.requires_grad for p in model.parameters()))
            model.train().requires_grad_(True)
            gradients = []
            for checkpointing in (False, True):
                if checkpointing:
                    model.enable_gradient_checkpointing()
                model.zero_grad()
                fixture.call(model, **fixture.inputs(12, 20)).square().mean().backward()
                gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
            for key, gradient in gradients[0].items():
                if ".conv1." in key and "transformer_blocks" in key:
                    self.assert_close(gradients[1][key], gradient, 1e-4)

    @torch.no_grad()
    def test_compiled_whole(self):
        for name in fixture.TEACHERS:
            model = self.converted(name)
            compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
            for size in [(12, 20), (20, 12)]:
                with self.subTest(name, size=size):
                    inputs = fixture.inputs(*size)
                    self.assert_close(fixture.call(compiled, **inputs), fixture.call(model, **inputs), 1e-5)


class Errors(Case):
    """Each names what was found, and leaves the model as it was."""

    def refused(self, message, model=None, folder=None):
        model = teacher("tiny-unet") if model is None else model
        module = model if isinstance(model, torch.nn.Module) else None
        before = list(module.state_dict()) if module is not None else None
        with self.assertRaisesRegex(loader.DeltaConvError, message):
            loader.apply_deltaconv(model, folder or self.folder)
        if module is not None:
            self.assertEqual(list(module.state_dict()), before)
            hooks = [hook for m in module.modules() for hook in m._forward_pre_hooks.values()]
            self.assertFalse(any(isinstance(hook, loader.MapSize) for hook in hooks))

    def describe(self, change):
        path = self.folder / "deltaconv.json"
        json_ = json.loads(path.read_text())
        change(json_)
        path.write_text(json.dumps(json_))

    def store(self, tensors):
        save_file({key: value.contiguous() for key, value in tensors.items()}, self.folder / "blocks.safetensors")

    def test_folders(self):
        self.output("tiny-unet")
        self.refused("no deltaconv.json.*isn't a folder here", folder="runwayml/stable-diffusion-v1-5")
        self.refused("no deltaconv.json; pass .*/output$", folder=self.folder.parent)
        self.refused("no deltaconv.json.*that the job wrote", folder=fixture.ROOT)
        (self.folder / "blocks.safetensors").write_bytes(b"\x10" * 40)
        self.refused("blocks.safetensors can't be read")
        (self.folder / "blocks.safetensors").unlink()
        (self.folder / "unet" / loader.WEIGHTS).unlink()
        self.refused("neither blocks.safetensors nor unet/")
        (self.folder / "deltaconv.json").write_text('{"format_version": ')
        self.refused("deltaconv.json can't be read")

    def test_descriptions(self):
        for change, message in [
            (lambda d: d.update(format_version=2), "format_version is 2.*reads 1"),
            (
                lambda d: d["teacher"].update({"class": "FluxTransformer2DModel"}),
                "teacher.class is 'FluxTransformer2DModel'",
            ),
            (lambda d: d.update(teacher=None), "teacher.class is 'None'"),
            (lambda d: d.update(layers=[]), "layers is"),
            (lambda d: d["layers"].append(3), r"layers\[7\] is '3'"),
            (lambda d: d["layers"].append(d["layers"][0]), r"layers\[7\].name is 'down_blocks"),
            (lambda d: d["layers"][1].update(name=7), r"layers\[1\].name is '7'"),
            (lambda d: d["layers"][1].update(width=-64), r"layers\[1\].width is '-64'"),
            (lambda d: d["layers"][1].update(kernel_size=4), r"layers\[1\].kernel_size is '4', expected an odd"),
            (lambda d: d["layers"][1].update(scales=[0.5]), r"layers\[1\].scales"),
            (lambda d: d["layers"][1].update(scales=[1.0, "x"]), r"layers\[1\].scales"),
            (lambda d: d["layers"][1].update(gate="linear"), r"layers\[1\].gate is 'linear'"),
            (lambda d: d["layers"][1].update(inter_ratio=0.001), r"layers\[1\].inter_ratio is '0.001'"),
        ]:
            with self.subTest(message):
                self.output("tiny-unet")
                self.describe(change)
                self.refused(message)

    def test_tensors(self):
        layers, tensors = self.output("tiny-unet")
        last = f"{layers[-1]['name']}.conv1."
        for change, message in [
            ({f"{last}conv_up.bias": None}, r"lacks up_blocks.2.*conv1.conv_up.bias \(1 missing\)"),
            ({"up_blocks.9.conv1.conv_up.bias": torch.zeros(1)}, "holds up_blocks.9.*another conversion"),
            ({f"{last}conv_up.bias": torch.zeros(31)}, r"conv_up.bias has shape \[31\].*makes it \[32\]"),
            ({f"{last}conv_up.bias": torch.zeros(32, dtype=torch.int32)}, "conv_up.bias is I32"),
            ({f"{last}conv_up.bias": torch.full((32,), torch.nan)}, r"conv_up.bias holds nan \(32 such"),
            ({f"{last}conv_up.bias": torch.full((32,), -torch.inf)}, "conv_up.bias holds -inf"),
        ]:
            with self.subTest(message):
                self.store({key: value for key, value in (tensors | change).items() if value is not None})
                self.refused(message)
        self.store(tensors | {f"{last}conv_up.bias": torch.full((32,), 1e6)})
        self.refused("conv_up.bias in torch.float16 holds inf.*bf16 or f32", teacher("tiny-unet").half())
        (self.folder / "blocks.safetensors").unlink()
        self.describe(lambda d: d["layers"].pop())
        self.refused("unet/diffusion.* holds up_blocks.2.*deltaconv.json doesn't list")

    def test_models(self):
        self.output("tiny-unet")
        self.refused("of a UNet2DConditionModel, but PixArtTransformer2DModel", teacher("tiny-pixart"))
        self.refused("but object has no denoiser", object())
        self.refused("is in torch.float64", teacher("tiny-unet").double())
        self.refused("before torch.compile", torch.compile(teacher("tiny-unet"), backend="eager"))
        compiled = teacher("tiny-unet")
        compiled.compile(backend="eager")
        self.refused("before torch.compile", compiled)
        self.refused("has hooks already", accelerate.cpu_offload(teacher("tiny-unet"), execution_device="cpu"))
        cast = teacher("tiny-unet")
        cast.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        self.refused("has hooks already", cast)
        class_, config = type(TEACHERS["tiny-unet"]), dict(TEACHERS["tiny-unet"].config)
        fewer = {"down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2}
        self.refused(
            "no layer down_blocks.0.* 7 with attention, such as down_blocks.1", class_.from_config(config | fewer)
        )
        narrow = {"block_out_channels": (32, 64, 64), "norm_num_groups": 8}
        self.refused("down_blocks.0.* has 32 channels, its block 64", class_.from_config(config | narrow))
        model = loader.apply_deltaconv(teacher("tiny-unet"), self.folder)
        with self.assertRaisesRegex(loader.DeltaConvError, "converted already"):
            loader.apply_deltaconv(model, self.folder)

    @torch.no_grad()
    def test_calls(self):
        model = self.converted("tiny-unet")
        layer = model.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0")
        with self.assertRaisesRegex(loader.DeltaConvError, "down_blocks.0.*got 12 positions"):
            layer.attn1(torch.zeros(1, 12, 64))
        fixture.call(model, **fixture.inputs())
        with self.assertRaisesRegex(loader.DeltaConvError, "got 512 positions.*32×32"):
            layer.attn1(torch.zeros(1, 512, 64))
        with self.assertRaisesRegex(loader.DeltaConvError, "takes no attention_mask"):
            fixture.call(model, **fixture.inputs(), attention_mask=torch.ones(2, 1024))
        with self.assertRaisesRegex(loader.DeltaConvError, "scale 0.5 leaves no pixel of a 1×1 map"):
            fixture.call(model, **fixture.inputs(4, 4))


if __name__ == "__main__":
    unittest.main()
