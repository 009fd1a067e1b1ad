//! Messages with secrets, as they may be shown.

use std::fmt;

use crate::v1;

impl fmt::Debug for v1::Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::EnrolRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::EnrolResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolResponse").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl fmt::Debug for v1::InviteResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InviteResponse").field("invitation", &self.invitation).finish_non_exhaustive()
    }
}
