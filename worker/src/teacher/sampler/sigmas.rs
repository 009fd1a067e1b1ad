//! The noise levels of solvers that step in σ = √((1−ᾱ)/ᾱ), the noise's deviation over the signal's scale.

use super::{Error, Sampler};

/// ᾱ of the last timestep where the schedule is rescaled to end at 0, for σ to be finite there. Source: diffusers
/// `schedulers/scheduling_euler_discrete.py` and `scheduling_dpmsolver_multistep.py`, 2⁻²⁴.
const LAST_ALPHA: f64 = 1.0 / (1 << 24) as f64;

/// σ of each timestep, interpolated between whole ones, and the 0 that the last step ends at.
pub(super) fn sigmas(sampler: &Sampler, timesteps: &[f64]) -> Result<Vec<f64>, Error> {
    let last = sampler.alphas_cumprod.len().saturating_sub(1);
    let rescaled = sampler.scheduler.rescale_betas_zero_snr;
    let whole = |timestep: usize| -> Result<f64, Error> {
        let alpha = if rescaled && timestep == last { LAST_ALPHA } else { sampler.alpha_cumprod(timestep)? };
        Ok(((1.0 - alpha) / alpha).sqrt())
    };
    let sigma = |timestep: &f64| -> Result<f64, Error> {
        let (below, part) = (timestep.floor() as usize, timestep.fract());
        let sigma = match whole(below)? {
            below_sigma if part > 0.0 => below_sigma + part * (whole(below + 1)? - below_sigma),
            sigma => sigma,
        };
        if sigma > 0.0 && sigma.is_finite() {
            return Ok(sigma);
        }
        let problem = format!("timestep {timestep} has no noise or no signal: σ = {sigma}; sample with ddim");
        Err(Error::Argument { argument: "steps", problem })
    };
    timesteps.iter().map(sigma).chain([Ok(0.0)]).collect()
}

/// α = 1/√(σ²+1): what x₀ is scaled by where signal and noise have unit variance together.
pub(super) fn alpha(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}
