"""Records how diffusers' schedulers sample, for `cargo test -p deltaconv-worker sampler`.

    pip install -r worker/tests/requirements.txt
    python worker/tests/sampler_reference.py [FOLDER]

For each `<name>/scheduler_config.json` of the folder (`golden/samplers` where none is given) it writes
`<name>/recording.json`: the noise that sampling starts from, and for each solver and number of steps the `timesteps`, the
`largest` number that x held, the `middle` (what the model is given at step n // 2) and the `final` sample. The model is a
function of x and t, for the schedulers alone to matter.
"""

import argparse
import json
import math
import pathlib

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

STEPS = [1, 4, 20]
SHAPE = [1, 4, 2, 3]

# Not sigma_min and sigma_max: they matter only to the spacings of sigma that are switched off here.
NO_OTHER_SIGMAS = dict(use_karras_sigmas=False, use_exponential_sigmas=False, use_beta_sigmas=False)
DPM_SOLVER = dict(
    algorithm_type="dpmsolver++",
    solver_order=2,
    solver_type="midpoint",
    lower_order_final=True,
    final_sigmas_type="zero",
    lambda_min_clipped=-math.inf,
    variance_type=None,
    use_lu_lambdas=False,
    **NO_OTHER_SIGMAS,
)
EULER = dict(interpolation_type="linear", final_sigmas_type="zero", **NO_OTHER_SIGMAS)


def schedulers(config):
    """What gives the numbers of each of our solvers."""
    own = getattr(diffusers, config["_class_name"]).from_config(config).config
    # What the file doesn't say is the default of its own class, and where that has no clipping, there is none.
    ddim = dict(
        timestep_spacing=own.timestep_spacing,
        set_alpha_to_one=own.get("set_alpha_to_one", True),
        clip_sample=own.get("clip_sample", False),
    )
    return {
        "ddim": lambda: DDIMScheduler.from_config(config, **ddim),
        "dpm-solver++": lambda: DPMSolverMultistepScheduler.from_config(config, **DPM_SOLVER),
        "euler": lambda: EulerDiscreteScheduler.from_config(config, **EULER),
    }


def model(x, t):
    return torch.tanh(0.8 * x + (0.5 * float(t) / 1000 - 0.2))


def sample(scheduler, noise, steps):
    scheduler.set_timesteps(steps)
    x = noise * scheduler.init_noise_sigma
    largest = 0.0
    for i, t in enumerate(scheduler.timesteps):
        largest = max(largest, x.abs().max().item())
        given = scheduler.scale_model_input(x, t)
        if i == steps // 2:
            middle = given
        x = scheduler.step(model(given, t), t, x).prev_sample
    return scheduler.timesteps, largest, middle, x


def numbers(tensor):
    """Of f32, as short as reads back the same."""
    return [float(f"{number:.9g}") for number in tensor.flatten().tolist()]


def record(config):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    runs = []
    for solver, scheduler in schedulers(config).items():
        for steps in STEPS:
            timesteps, largest, middle, final = sample(scheduler(), noise, steps)
            runs.append(
                dict(
                    solver=solver,
                    steps=steps,
                    timesteps=numbers(timesteps),
                    largest=largest,
                    middle=numbers(middle),
                    final=numbers(final),
                )
            )
    return dict(diffusers=diffusers.__version__, shape=SHAPE, noise=numbers(noise), runs=runs)


def written(recording):
    """JSON with one list a line."""
    runs = ",\n".join(
        "{" + ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in run.items()) + "}"
        for run in recording.pop("runs")
    )
    head = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in recording.items())
    return f"{{{head},\n\"runs\": [\n{runs}\n]}}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    golden = pathlib.Path(__file__).parent / "golden" / "samplers"
    parser.add_argument("folder", metavar="FOLDER", type=pathlib.Path, nargs="?", default=golden)
    for file in sorted(parser.parse_args().folder.glob("*/scheduler_config.json")):
        recording = record(json.loads(file.read_text()))
        file.with_name("recording.json").write_text(written(recording))


if __name__ == "__main__":
    main()
