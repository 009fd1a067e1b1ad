"""Writes worker/tests/golden/student-<teacher>.safetensors: converted models by diffusers and the loader, in f32.

    python coordinator/tests/loader/student_golden.py

Each file holds random blocks under their published names; `latent` [2, 3, 32, 32], `timestep` [2] (i64),
`encoder_hidden_states` [2, 4, 64] and the output `sample`; the same four behind `wide.` for one latent of 24×40. The
model's `deltaconv.json` is in the metadata. All layers of tiny-unet are replaced, two of tiny-pixart's are kept.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import fixture

KEPT = {"tiny-unet": (), "tiny-pixart": ("transformer_blocks.2", "transformer_blocks.5")}
CASES = {"": fixture.inputs(), "wide.": fixture.inputs(24, 40, batch=1, seed=2)}


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    loader = fixture.load_loader()
    for name, kept in KEPT.items():
        model = fixture.load_teacher(name)
        layers = fixture.plan(name, model, kept)
        tensors = fixture.random_blocks(layers)
        with tempfile.TemporaryDirectory() as folder:
            fixture.write_output(Path(folder), name, layers, tensors)
            loader.apply_deltaconv(model, folder)
        for prefix, inputs in CASES.items():
            tensors |= {prefix + key: value for key, value in inputs.items()}
            tensors[f"{prefix}sample"] = fixture.call(model, **inputs).contiguous()
        path = fixture.ROOT / f"worker/tests/golden/student-{name}.safetensors"
        save_file(tensors, path, {"deltaconv.json": json.dumps(fixture.description(name, layers))})
        print(f"{path.relative_to(fixture.ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
