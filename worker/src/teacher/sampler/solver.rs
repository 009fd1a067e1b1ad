//! What a solver is: its name, and what the sampling loop asks of it.

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;

use super::Error;

/// How a prediction becomes the next x. Each takes one evaluation of the model a step, and draws no noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// DDIM (arXiv 2010.02502), η = 0.
    Ddim,
    /// DPM-Solver++(2M) (arXiv 2211.01095).
    DpmSolverPlusPlus,
    /// Euler's method (arXiv 2206.00364, algorithm 1 without its second order).
    Euler,
}

impl Solver {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Ddim, Self::DpmSolverPlusPlus, Self::Euler];

    /// The name that users give it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::DpmSolverPlusPlus => "dpm-solver++",
            Self::Euler => "euler",
        }
    }
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Solver {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|solver| solver.name() == name).ok_or_else(|| {
            let problem = format!("expected {}, found {name:?}", Self::ALL.map(Self::name).join(", "));
            Error::Argument { argument: "solver", problem }
        })
    }
}

/// How to go down the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    /// What takes them.
    pub solver: Solver,
    /// How many.
    pub count: usize,
}

/// One way down, by one solver: x is the solver's own, which is not always of the variance that the model was trained
/// with. Steps are numbered from 0 and come in order.
pub(super) trait Descent {
    /// The first x, from noise of unit variance; diffusers' `init_noise_sigma`.
    fn start(&self, noise: &Tensor) -> Result<Tensor, Error>;

    /// What the model is given for x; diffusers' `scale_model_input`.
    fn input(&self, step: usize, x: &Tensor) -> Result<Tensor, Error>;

    /// The x after this step.
    fn step(&mut self, step: usize, x: &Tensor, prediction: &Tensor) -> Result<Tensor, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for solver in Solver::ALL {
            assert_eq!(solver.to_string().parse::<Solver>().unwrap(), solver);
        }
        let error = "heun".parse::<Solver>().unwrap_err().to_string();
        assert_eq!(error, "`solver`: expected ddim, dpm-solver++, euler, found \"heun\"");
    }
}
