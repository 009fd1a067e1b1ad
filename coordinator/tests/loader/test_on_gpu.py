"""The loader in the real diffusers, on a GPU; skipped where there is none.

python -m unittest discover coordinator/tests/loader
"""

import copy
import tempfile
import unittest
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig

import fixture

loader = fixture.load_loader()
TEACHERS = {name: fixture.load_teacher(name) for name in fixture.TEACHERS}
# Of the greatest value: rounding of matrix products, without TF32, and of the two 16-bit types.
LIMITS = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}


def on_gpu(inputs, dtype):
    return {key: value.to("cuda", dtype if value.is_floating_point() else value.dtype) for key, value in inputs.items()}


@unittest.skipUnless(torch.cuda.is_available(), "there is no GPU")
class OnGpu(unittest.TestCase):
    def setUp(self):
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def converted(self, name):
        """The student on the CPU in f32, and its output in the folder."""
        layers = fixture.plan(name, TEACHERS[name])
        fixture.write_output(self.folder, name, layers, fixture.random_blocks(layers))
        return loader.apply_deltaconv(copy.deepcopy(TEACHERS[name]), self.folder)

    def assert_close(self, found, expected, limit):
        found, expected = found.double().cpu(), expected.double()
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        print(f"{self.id().split('.')[-1]}: {error:.1e}, limit {limit:.0e}")
        self.assertLess(error, limit)

    def test_before_and_after_the_move_in_every_dtype(self):
        for name, teacher in TEACHERS.items():
            inputs = fixture.inputs(12, 20)
            expected = fixture.call(self.converted(name), **inputs)
            for dtype, limit in LIMITS.items():
                with self.subTest(name, dtype=dtype):
                    before = loader.apply_deltaconv(copy.deepcopy(teacher).to("cuda", dtype), self.folder)
                    self.assertEqual({(p.device.type, p.dtype) for p in before.parameters()}, {("cuda", dtype)})
                    found = fixture.call(before, **on_gpu(inputs, dtype))
                    self.assertEqual(found.dtype, dtype)
                    self.assert_close(found, expected, limit)
                    after = loader.apply_deltaconv(copy.deepcopy(teacher), self.folder).to("cuda", dtype)
                    self.assertTrue(torch.equal(found, fixture.call(after, **on_gpu(inputs, dtype))))

    def test_channels_last_and_compiled(self):
        inputs = fixture.inputs()
        expected = fixture.call(self.converted("tiny-unet"), **inputs)
        model = loader.apply_deltaconv(copy.deepcopy(TEACHERS["tiny-unet"]).to("cuda", torch.float16), self.folder)
        model = model.to(memory_format=torch.channels_last)
        self.assert_close(fixture.call(model, **on_gpu(inputs, torch.float16)), expected, 3e-3)
        compiled = torch.compile(model, fullgraph=True)
        self.assert_close(fixture.call(compiled, **on_gpu(inputs, torch.float16)), expected, 3e-3)

    def test_lora_on_other_layers(self):
        inputs = fixture.inputs()
        config = LoraConfig(r=2, target_modules=["attn2.to_q", "attn2.to_v"], init_lora_weights=False)
        torch.manual_seed(0)
        expected = self.converted("tiny-unet")
        expected.add_adapter(config)
        model = copy.deepcopy(expected).to("cuda")
        plain = fixture.call(self.converted("tiny-unet"), **inputs)
        expected = fixture.call(expected, **inputs)
        self.assertGreater((expected - plain).abs().max().item(), 1e-2 * plain.abs().max().item())
        self.assert_close(fixture.call(model, **on_gpu(inputs, torch.float32)), expected, 1e-5)

    def test_a_pipeline_draws(self):
        self.converted("tiny-unet")
        vae = AutoencoderKL(latent_channels=3, block_out_channels=[8], norm_num_groups=4)
        scheduler = DDIMScheduler.from_pretrained(fixture.ROOT / "cli/teachers/tiny-unet", subfolder="scheduler")
        parts = dict(text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None)
        pipe = StableDiffusionPipeline(
            vae=vae, unet=copy.deepcopy(TEACHERS["tiny-unet"]), scheduler=scheduler, **parts, requires_safety_checker=False
        )
        pipe = loader.apply_deltaconv(pipe.to("cuda", torch.float16), self.folder)
        text = torch.randn(1, 4, 64, device="cuda", dtype=torch.float16)
        latents = pipe(
            prompt_embeds=text, negative_prompt_embeds=text, num_inference_steps=2, output_type="latent"
        ).images
        self.assertEqual((latents.device.type, latents.dtype), ("cuda", torch.float16))
        self.assertTrue(torch.isfinite(latents).all())


if __name__ == "__main__":
    unittest.main()
