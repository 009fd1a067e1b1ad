//! Which timesteps are visited: `set_timesteps` of diffusers' `schedulers/scheduling_ddim.py`,
//! `scheduling_dpmsolver_multistep.py` and `scheduling_euler_discrete.py`, whose arithmetic differs.

use deltaconv_proto::teacher::{Scheduler, TimestepSpacing};

use super::{Error, Solver, Steps};

/// How the solver's timesteps are spaced.
pub(super) fn spacing(scheduler: &Scheduler, solver: Solver) -> TimestepSpacing {
    match solver {
        Solver::Ddim => scheduler.timestep_spacing,
        _ if scheduler.timestep_spacing_given => scheduler.timestep_spacing,
        // The default of both classes.
        Solver::DpmSolverPlusPlus | Solver::Euler => TimestepSpacing::Linspace,
    }
}

/// The timesteps, first to last.
pub(super) fn visited(scheduler: &Scheduler, steps: Steps) -> Result<Vec<f64>, Error> {
    let Steps { solver, count } = steps;
    let train = scheduler.num_train_timesteps;
    if !(1..=train).contains(&count) {
        let problem = format!("expected 1 to {train}, found {count}");
        return Err(Error::Argument { argument: "steps", problem });
    }
    // numpy rounds halves to even.
    let timesteps: Vec<f64> = match (spacing(scheduler, solver), solver) {
        (TimestepSpacing::Leading, Solver::Ddim | Solver::Euler) => {
            (0..count).rev().map(|i| (i * (train / count) + scheduler.steps_offset) as f64).collect()
        }
        // One timestep more than there are steps, of which the last is left out.
        (TimestepSpacing::Leading, Solver::DpmSolverPlusPlus) => {
            (1..=count).rev().map(|i| (i * (train / (count + 1)) + scheduler.steps_offset) as f64).collect()
        }
        (TimestepSpacing::Linspace, Solver::Ddim) => {
            let step = (train - 1) as f64 / (count - 1).max(1) as f64;
            (0..count).rev().map(|i| (i as f64 * step).round_ties_even()).collect()
        }
        (TimestepSpacing::Linspace, Solver::DpmSolverPlusPlus) => {
            let step = (train - 1) as f64 / count as f64;
            (1..=count).rev().map(|i| (i as f64 * step).round_ties_even()).collect()
        }
        // Not rounded, but f32.
        (TimestepSpacing::Linspace, Solver::Euler) => {
            let step = (train - 1) as f64 / (count - 1).max(1) as f64;
            (0..count).rev().map(|i| f64::from((i as f64 * step) as f32)).collect()
        }
        (TimestepSpacing::Trailing, _) => {
            let step = train as f64 / count as f64;
            // numpy's arange goes by the difference of its first two numbers, whose last bits decide how a half is rounded
            // (1000 timesteps in 48 steps). Not so for DDIM, of which there are pictures that have to stay as they are.
            let step = if solver == Solver::Ddim { step } else { train as f64 - (train as f64 - step) };
            // diffusers' rounding sometimes adds a step at timestep -1 (1000 in 61), which is left out.
            (0..count).map(|i| ((train as f64 - i as f64 * step).round_ties_even() - 1.0).max(0.0)).collect()
        }
    };
    match timesteps.iter().find(|t| **t >= train as f64) {
        Some(t) => {
            let problem = format!("{count} with the schedule's steps_offset reach timestep {t} of {train}");
            Err(Error::Argument { argument: "steps", problem })
        }
        None => Ok(timesteps),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timesteps(fields: &str, solver: Solver, count: usize) -> Result<Vec<f64>, Error> {
        let json = format!(r#"{{"_class_name": "DDIMScheduler"{fields}}}"#);
        visited(&Scheduler::parse(json.as_bytes()).unwrap(), Steps { solver, count })
    }

    /// As numpy gives them in diffusers' `set_timesteps`, but for DDIM's 937.
    #[test]
    fn timesteps_are_those_of_the_spacing() {
        let leading = |count| timesteps(r#", "steps_offset": 1"#, Solver::Ddim, count);
        assert_eq!(leading(4).unwrap(), [751.0, 501.0, 251.0, 1.0]);
        assert_eq!(leading(3).unwrap(), [667.0, 334.0, 1.0]);
        assert!(leading(1000).is_err());
        assert!(leading(0).is_err());
        let trailing = timesteps(r#", "timestep_spacing": "trailing""#, Solver::Ddim, 3);
        assert_eq!(trailing.unwrap(), [999.0, 666.0, 332.0]);
        for (solver, fourth) in [(Solver::Ddim, 937.0), (Solver::DpmSolverPlusPlus, 936.0), (Solver::Euler, 936.0)] {
            let trailing = timesteps(r#", "timestep_spacing": "trailing""#, solver, 48);
            assert_eq!(trailing.unwrap()[3], fourth, "{solver}");
        }
        let linspace = timesteps(r#", "timestep_spacing": "linspace""#, Solver::Ddim, 3);
        assert_eq!(linspace.unwrap(), [999.0, 500.0, 0.0]);
    }

    #[test]
    fn a_file_without_a_spacing_has_the_default_of_the_solver() {
        assert_eq!(timesteps("", Solver::Ddim, 2).unwrap(), [500.0, 0.0]);
        assert_eq!(timesteps("", Solver::DpmSolverPlusPlus, 2).unwrap(), [999.0, 500.0]);
        assert_eq!(timesteps("", Solver::Euler, 2).unwrap(), [999.0, 0.0]);
    }
}
