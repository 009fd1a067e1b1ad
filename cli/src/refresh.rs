//! What is shown again and again.

use serde::Serialize;

use crate::args::{Output, Refresh};
use crate::ending::Signals;
use crate::error::Error;
use crate::output;
use crate::watching::patiently;

/// Shows what `ask` answers, once, or with `refresh` again and again until it is interrupted: on a terminal in the place of what was
/// there, elsewhere whenever it changed. Returns what was shown last; `None` after an interruption.
pub(crate) async fn show<T, F>(
    refresh: Refresh,
    output: Output,
    mut ask: impl FnMut() -> F,
    tell: impl Fn(&T, bool),
) -> Result<Option<T>, Error>
where
    T: Serialize + PartialEq,
    F: Future<Output = Result<T, Error>>,
{
    let first = ask().await?;
    let Some(every) = refresh.every else {
        match output.data() {
            Some(data) => data.print(&first),
            None => tell(&first, output.is_wide()),
        }
        return Ok(Some(first));
    };
    let mut signals = Signals::new()?;
    let is_drawn = output.data().is_none() && output::is_terminal();
    let (mut shown, mut last) = (first, None);
    loop {
        match output.data() {
            // NaN differs from itself, so that what has none may be told again without a change.
            _ if last.as_ref() == Some(&shown) => {}
            Some(data) => data.print_one(&shown),
            None => {
                if is_drawn {
                    output::clear();
                } else if last.is_some() {
                    output::print("");
                }
                tell(&shown, output.is_wide());
            }
        }
        last = Some(shown);
        shown = tokio::select! {
            () = signals.next() => return Ok(None),
            asked = async {
                tokio::time::sleep(every).await;
                patiently(&mut ask).await
            } => asked?,
        };
    }
}
