//! The noise schedule of a teacher, from `scheduler/scheduler_config.json`.
//!
//! Only what shapes the training noise, which timesteps sampling visits and how DDIM ends is honoured. We sample with three
//! solvers of fixed settings (`worker/src/teacher/sampler/`): whatever tells one of diffusers' solvers how to step has no
//! effect here and is accepted. Source: diffusers `schedulers/scheduling_*.py`.

use serde_json::Value;

use super::Error;
use super::fields::{Fields, invalid, shown};

/// Most training timesteps that are accepted; models have 1000.
const MAX_TIMESTEPS: usize = 100_000;

/// How β grows over the timesteps.
#[derive(Debug, Clone, PartialEq)]
pub enum BetaSchedule {
    /// From start to end, evenly.
    Linear {
        /// β of the first timestep.
        start: f64,
        /// β of the last timestep.
        end: f64,
    },
    /// √β evenly from √start to √end: latent diffusion models.
    ScaledLinear {
        /// β of the first timestep.
        start: f64,
        /// β of the last timestep.
        end: f64,
    },
    /// The cosine schedule of arXiv 2102.09672, β at most 0.999.
    SquaredCosine,
    /// β given one by one.
    Trained(Vec<f64>),
}

/// What latents can be sampled with, by name: DDIM (arXiv 2010.02502), DPM-Solver++ (2211.01095), Euler (2206.00364).
pub const SOLVERS: [&str; 3] = ["ddim", "dpm-solver++", "euler"];

/// What the model's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise ε.
    Epsilon,
    /// v = √ᾱ ε − √(1−ᾱ) x₀ (arXiv 2202.00512).
    VPrediction,
    /// The sample x₀.
    Sample,
}

/// Which timesteps sampling visits (arXiv 2305.08891, table 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Multiples of ⌊T/n⌋, plus the offset.
    Leading,
    /// Down from T − 1 in steps of T/n.
    Trailing,
    /// Evenly from 0 to T − 1.
    Linspace,
}

/// A noise schedule, and what sampling needs to know beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduler {
    /// Training timesteps T.
    pub num_train_timesteps: usize,
    /// β.
    pub betas: BetaSchedule,
    /// Whether β is rescaled so that the last timestep is pure noise (arXiv 2305.08891, algorithm 1).
    pub rescale_betas_zero_snr: bool,
    /// What the model predicts.
    pub prediction_type: PredictionType,
    /// Which timesteps sampling visits: what the file says, or else the default of its class.
    pub timestep_spacing: TimestepSpacing,
    /// Whether the file says so. Where it doesn't, `from_config` of another of diffusers' classes takes the default of that
    /// class.
    pub timestep_spacing_given: bool,
    /// Added to the timesteps of [`TimestepSpacing::Leading`].
    pub steps_offset: usize,
    /// Whether DDIM's last step ends at ᾱ = 1 (else at ᾱ of timestep 0).
    pub set_alpha_to_one: bool,
    /// Bound of the x₀ that DDIM predicts, in latent units; `None` for models that are not clipped.
    pub clip_sample_range: Option<f64>,
}

/// What a scheduler class takes for fields that its file lacks.
struct Defaults {
    beta_start: f64,
    beta_end: f64,
    schedule: &'static str,
    spacing: &'static str,
    set_alpha_to_one: bool,
    clip_sample: bool,
}

const CLASSES: &str = "DDIMScheduler, DDPMScheduler, PNDMScheduler, LMSDiscreteScheduler, EulerDiscreteScheduler, \
    EulerAncestralDiscreteScheduler, HeunDiscreteScheduler, DPMSolverMultistepScheduler, \
    DPMSolverSinglestepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler, KDPM2DiscreteScheduler, \
    KDPM2AncestralDiscreteScheduler, LCMScheduler";

impl Defaults {
    fn of(class: &str) -> Option<Self> {
        let ddim = Self {
            beta_start: 0.0001,
            beta_end: 0.02,
            schedule: "linear",
            spacing: "leading",
            set_alpha_to_one: true,
            clip_sample: true,
        };
        Some(match class {
            "DDIMScheduler" | "DDPMScheduler" => ddim,
            "PNDMScheduler" => Self { set_alpha_to_one: false, clip_sample: false, ..ddim },
            "LCMScheduler" => {
                Self { beta_start: 0.00085, beta_end: 0.012, schedule: "scaled_linear", clip_sample: false, ..ddim }
            }
            "HeunDiscreteScheduler" | "KDPM2DiscreteScheduler" | "KDPM2AncestralDiscreteScheduler" => {
                Self { beta_start: 0.00085, beta_end: 0.012, spacing: "linspace", clip_sample: false, ..ddim }
            }
            "LMSDiscreteScheduler"
            | "EulerDiscreteScheduler"
            | "EulerAncestralDiscreteScheduler"
            | "DPMSolverMultistepScheduler"
            | "DPMSolverSinglestepScheduler"
            | "UniPCMultistepScheduler"
            | "DEISMultistepScheduler" => Self { spacing: "linspace", clip_sample: false, ..ddim },
            _ => return None,
        })
    }
}

/// Fields that only tell a solver how to step, where ours have fixed settings, or that depend on a field that is refused.
/// To sample the same with diffusers, its classes need these settings: `worker/tests/sampler_reference.py` has them, and
/// files whose own are others.
const WITHOUT_EFFECT: &[&str] = &[
    "_class_name",
    "_diffusers_version",
    "_name_or_path",
    "algorithm_type",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "original_inference_steps",
    "predict_x0",
    "sample_max_value",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "time_shift_type",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

impl Scheduler {
    /// Reads a `scheduler_config.json`.
    ///
    /// # Errors
    /// A class that is not known, a field that changes the noise and is not implemented, a value out of range.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields::parse(json)?;
        let class = fields.class()?;
        let Some(defaults) = Defaults::of(&class) else {
            return Err(Error::Class { found: class, supported: CLASSES });
        };
        fields.ignore(WITHOUT_EFFECT);
        fields.refuse_unless("thresholding", &Value::Bool(false), "false")?;
        fields.refuse_unless("use_flow_sigmas", &Value::Bool(false), "false")?;
        fields.refuse_unless("use_dynamic_shifting", &Value::Bool(false), "false")?;
        fields.refuse_unless("timestep_type", &Value::from("discrete"), "\"discrete\"")?;
        // The name that `prediction_type` had before diffusers 0.7.
        fields.refuse_unless("predict_epsilon", &Value::Bool(true), "true")?;
        if let Some(scaling) = fields.take("timestep_scaling")
            && class != "LCMScheduler"
        {
            return Err(Error::UnknownField { field: "timestep_scaling".to_owned(), value: shown(&scaling) });
        }

        let num_train_timesteps = fields.count("num_train_timesteps", 1000, 1, MAX_TIMESTEPS)?;
        let steps_offset = fields.count("steps_offset", 0, 0, num_train_timesteps - 1)?;
        let betas = betas(&mut fields, &defaults, num_train_timesteps)?;
        let prediction_type = match fields.string("prediction_type", Some("epsilon"))?.as_deref() {
            Some("epsilon") => PredictionType::Epsilon,
            Some("v_prediction") => PredictionType::VPrediction,
            Some("sample") => PredictionType::Sample,
            other => return Err(unsupported("prediction_type", other, "epsilon, v_prediction, sample")),
        };
        let timestep_spacing_given = fields.has("timestep_spacing");
        let timestep_spacing = match fields.string("timestep_spacing", Some(defaults.spacing))?.as_deref() {
            Some("leading") => TimestepSpacing::Leading,
            Some("trailing") => TimestepSpacing::Trailing,
            Some("linspace") => TimestepSpacing::Linspace,
            other => return Err(unsupported("timestep_spacing", other, "leading, trailing, linspace")),
        };
        let rescale_betas_zero_snr = fields.bool("rescale_betas_zero_snr", false)?;
        let set_alpha_to_one = fields.bool("set_alpha_to_one", defaults.set_alpha_to_one)?;
        let clip_sample = fields.bool("clip_sample", defaults.clip_sample)?;
        let clip_sample_range = fields.number("clip_sample_range", 1.0)?;
        if clip_sample && clip_sample_range <= 0.0 {
            return Err(invalid("clip_sample_range", &Value::from(clip_sample_range), "a number above 0"));
        }
        fields.finish()?;
        Ok(Self {
            num_train_timesteps,
            betas,
            rescale_betas_zero_snr,
            prediction_type,
            timestep_spacing,
            timestep_spacing_given,
            steps_offset,
            set_alpha_to_one,
            clip_sample_range: clip_sample.then_some(clip_sample_range),
        })
    }

    /// ᾱ of every timestep: x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε.
    pub fn alphas_cumprod(&self) -> Vec<f64> {
        let steps = self.num_train_timesteps;
        let even = |start: f64, end: f64| {
            let last = steps.saturating_sub(1).max(1) as f64;
            (0..steps).map(move |t| start + (end - start) * t as f64 / last)
        };
        let betas: Vec<f64> = match &self.betas {
            BetaSchedule::Linear { start, end } => even(*start, *end).collect(),
            BetaSchedule::ScaledLinear { start, end } => {
                even(start.sqrt(), end.sqrt()).map(|root| root * root).collect()
            }
            BetaSchedule::SquaredCosine => {
                let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
                let at = |t: usize| alpha_bar(t as f64 / steps as f64);
                (0..steps).map(|t| (1.0 - at(t + 1) / at(t)).min(0.999)).collect()
            }
            BetaSchedule::Trained(betas) => betas.clone(),
        };
        let mut product = 1.0;
        let mut alphas: Vec<f64> = betas
            .iter()
            .map(|beta| {
                product *= 1.0 - beta;
                product
            })
            .collect();
        if self.rescale_betas_zero_snr
            && let (Some(first), Some(last)) = (alphas.first().copied(), alphas.last().copied())
            && first > last
        {
            let (first, last) = (first.sqrt(), last.sqrt());
            for alpha in &mut alphas {
                *alpha = ((alpha.sqrt() - last) * first / (first - last)).powi(2);
            }
        }
        alphas
    }
}

fn betas(fields: &mut Fields, defaults: &Defaults, steps: usize) -> Result<BetaSchedule, Error> {
    let start = fields.number("beta_start", defaults.beta_start)?;
    let end = fields.number("beta_end", defaults.beta_end)?;
    for (field, value) in [("beta_start", start), ("beta_end", end)] {
        if !(0.0..1.0).contains(&value) {
            return Err(invalid(field, &Value::from(value), "a number from 0 to below 1"));
        }
    }
    let schedule = fields.string("beta_schedule", Some(defaults.schedule))?;
    match fields.take("trained_betas") {
        None | Some(Value::Null) => {}
        Some(value) => {
            let betas: Option<Vec<f64>> = value
                .as_array()
                .and_then(|betas| betas.iter().map(|b| b.as_f64().filter(|b| (0.0..1.0).contains(b))).collect());
            return match betas {
                Some(betas) if betas.len() == steps => Ok(BetaSchedule::Trained(betas)),
                _ => Err(invalid("trained_betas", &value, "num_train_timesteps numbers from 0 to below 1")),
            };
        }
    }
    match schedule.as_deref() {
        Some("linear") => Ok(BetaSchedule::Linear { start, end }),
        Some("scaled_linear") => Ok(BetaSchedule::ScaledLinear { start, end }),
        Some("squaredcos_cap_v2") => Ok(BetaSchedule::SquaredCosine),
        other => Err(unsupported("beta_schedule", other, "linear, scaled_linear, squaredcos_cap_v2")),
    }
}

fn unsupported(field: &'static str, value: Option<&str>, supported: &'static str) -> Error {
    Error::Unsupported { field, value: shown(&value.map_or(Value::Null, Value::from)), supported }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stable Diffusion 1.5's file.
    const SD15: &str = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false,
        "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;

    #[test]
    fn stable_diffusion_is_read() {
        let scheduler = Scheduler::parse(SD15.as_bytes()).unwrap();
        assert_eq!(scheduler.timestep_spacing, TimestepSpacing::Leading);
        assert!(!scheduler.timestep_spacing_given);
        assert!(!scheduler.set_alpha_to_one);
        assert_eq!((scheduler.steps_offset, scheduler.clip_sample_range), (1, None));
        let alphas = scheduler.alphas_cumprod();
        assert_eq!(alphas.len(), 1000);
        assert!((alphas[0] - 0.99915).abs() < 1e-12);
        // The value every SD 1.x user knows: ᾱ at t = 999.
        assert!((alphas[999] - 0.00466).abs() < 1e-5);
    }

    #[test]
    fn a_solver_of_other_defaults_and_python_infinities() {
        let json =
            br#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "solver_order": 2}"#;
        let scheduler = Scheduler::parse(json).unwrap();
        assert_eq!(scheduler.timestep_spacing, TimestepSpacing::Linspace);
        assert_eq!(scheduler.betas, BetaSchedule::Linear { start: 0.0001, end: 0.02 });
    }

    #[test]
    fn zero_terminal_snr_keeps_the_first_and_ends_at_zero() {
        let json =
            br#"{"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": true, "prediction_type": "v_prediction"}"#;
        let alphas = Scheduler::parse(json).unwrap().alphas_cumprod();
        assert!((alphas[0] - 0.9999).abs() < 1e-9);
        assert_eq!(alphas[999], 0.0);
    }

    #[test]
    fn what_changes_the_noise_is_refused_by_name() {
        let refused = |json: &str| Scheduler::parse(json.as_bytes()).unwrap_err().to_string();
        assert!(refused(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#).contains("FlowMatchEuler"));
        assert!(refused(r#"{"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}"#).contains("\"sigmoid\""));
        assert!(refused(r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#).contains("thresholding"));
        assert!(refused(r#"{"_class_name": "DDIMScheduler", "shift": 3.0}"#).contains("`shift` = 3.0"));
        assert!(
            refused(r#"{"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}"#)
                .contains("timestep_type")
        );
        assert!(
            refused(r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1e9}"#).contains("num_train_timesteps")
        );
    }
}
