//! Who may come: invitations that workers take for an identity of their own, and identities that are accepted no more.
//!
//! Of secrets and keys there is nothing here but digests, which compare in constant time.

use std::collections::BTreeMap;
use std::time::Duration;

use deltaconv_proto::ids::WorkerId;
use deltaconv_proto::tls::{Identity, Role};
use deltaconv_proto::v1;

use super::bounded::printable;
use super::events::{About, Severity};
use super::{Effects, Error, Now, State};
use crate::store::Write;

/// What a worker is called that had the token file, or an operator of a coordinator without TLS.
pub(crate) const LOCAL: &str = "local";
/// The longest that an invitation can be taken.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// After its end an invitation is listed for so long.
const LISTED: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often what is over is forgotten.
const LOOK: Duration = Duration::from_secs(60);
const MAX_INVITATIONS: usize = 10_000;
const MAX_IDENTITIES: usize = 100_000;

/// Invitations and identities.
#[derive(Debug, Default)]
pub(super) struct Access {
    invitations: BTreeMap<String, v1::InvitationRecord>,
    identities: BTreeMap<String, v1::IdentityRecord>,
    looked: Duration,
}

/// What a machine says that takes an invitation. Digests are BLAKE3.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// The invitation's.
    pub id: String,
    /// Of the secret that came with it.
    pub digest: blake3::Hash,
    /// Of the machine's public key.
    pub public_key: blake3::Hash,
    /// What it calls itself.
    pub name: String,
    /// Of what it will say with each call; nothing where its certificate says it.
    pub secret: Option<blake3::Hash>,
    /// How long its identity lasts, unless it is renewed.
    pub valid: Duration,
}

impl Access {
    /// Takes a record.
    pub(super) fn add_invitation(&mut self, record: v1::InvitationRecord) {
        self.invitations.insert(record.id.clone(), record);
    }

    /// Takes a record.
    pub(super) fn add_identity(&mut self, record: v1::IdentityRecord) {
        self.identities.insert(record.identity.clone(), record);
    }

    /// Everything.
    pub(super) fn writes(&self) -> impl Iterator<Item = Write> {
        let invitations = self.invitations.values().cloned().map(|record| Write::Invitation(record.into()));
        invitations.chain(self.identities.values().cloned().map(|record| Write::Identity(record.into())))
    }
}

impl State {
    /// Makes an invitation that `uses` workers may take, 0 for as many as want, within `valid`. `digest` is that of its secret.
    ///
    /// # Errors
    /// That there are too many, or that it would last longer than a year.
    pub fn invite(
        &mut self,
        digest: blake3::Hash,
        (uses, valid): (u32, Duration),
        by: &str,
        now: Now,
        effects: &mut Effects,
    ) -> Result<v1::InvitationStatus, Error> {
        if valid > LONGEST || valid.is_zero() {
            return Err(Error::Invitation("it would last no time, or longer than a year".into()));
        }
        if self.access.invitations.len() >= MAX_INVITATIONS {
            let message = format!("there are {MAX_INVITATIONS} already; revoke some that nobody needs");
            return Err(Error::Invitation(message));
        }
        self.unix_ms = now.unix_ms;
        self.meta.invitations += 1;
        let record = v1::InvitationRecord {
            id: format!("inv{}-{}", self.meta.invitations, self.settings.identity),
            digest: digest.as_bytes().to_vec(),
            created_unix_ms: now.unix_ms,
            expires_unix_ms: now.unix_ms + valid.as_millis() as u64,
            uses,
            used: 0,
            revoked: false,
            by: printable(by),
        };
        effects.writes.extend([Write::Meta(self.meta), Write::Invitation(record.clone().into())]);
        let status = invitation(&record);
        self.access.add_invitation(record);
        let message = format!("{} invited workers ({})", status.by, status.id);
        self.note((Severity::Info, "workers-invited"), About::Coordinator, message, effects);
        Ok(status)
    }

    /// Gives a machine that has an invitation an identity of its own. The same key again has the identity that it had, and takes
    /// nothing from the invitation.
    ///
    /// # Errors
    /// That there is no such invitation, or that it can be taken no more: the same words for all of these, since whoever asks may
    /// be guessing. Whoever has its secret is told which.
    pub fn enrol(
        &mut self,
        enrolment: Enrolment,
        now: Now,
        effects: &mut Effects,
    ) -> Result<v1::IdentityRecord, Error> {
        let Enrolment { id, digest, public_key, name, secret, valid } = enrolment;
        let unknown = || Error::InvitationOver("there is no such invitation here".into());
        let invited = self.access.invitations.get_mut(&id).ok_or_else(unknown)?;
        if !is_digest(&invited.digest, &digest) {
            return Err(unknown());
        }
        self.unix_ms = now.unix_ms;
        let over = |reason: &str| Err(Error::InvitationOver(format!("invitation {id} {reason}")));
        if invited.revoked {
            return over("was revoked");
        }
        if invited.expires_unix_ms <= now.unix_ms {
            return over("is over");
        }
        let is_same = |known: &&v1::IdentityRecord| known.invitation == id && is_digest(&known.public_key, &public_key);
        let known = self.access.identities.values().find(is_same).filter(|known| !known.revoked).cloned();
        let expires_unix_ms = now.unix_ms + valid.as_millis() as u64;
        let digest = secret.map(|secret| secret.as_bytes().to_vec()).unwrap_or_default();
        let record = match known {
            Some(known) => v1::IdentityRecord { digest, expires_unix_ms, ..known },
            None => {
                if invited.uses > 0 && invited.used >= invited.uses {
                    return over(&format!("was taken {} times, which is as often as it may be", invited.used));
                }
                if self.access.identities.len() >= MAX_IDENTITIES {
                    return over(&format!("is not taken: there are {MAX_IDENTITIES} identities already"));
                }
                invited.used = invited.used.saturating_add(1);
                self.meta.identities += 1;
                let number = format!("{}-{}", self.meta.identities, self.settings.identity);
                let identity = Identity::new(Role::Worker, &number).map_err(|e| Error::Record(e.to_string()))?;
                effects.writes.extend([Write::Meta(self.meta), Write::Invitation(invited.clone().into())]);
                v1::IdentityRecord {
                    identity: identity.to_string(),
                    invitation: id,
                    name: printable(&name),
                    public_key: public_key.as_bytes().to_vec(),
                    digest,
                    created_unix_ms: now.unix_ms,
                    expires_unix_ms,
                    revoked: false,
                }
            }
        };
        effects.writes.push(Write::Identity(record.clone().into()));
        self.access.add_identity(record.clone());
        let message = format!("{} is {} by invitation {}", record.name, record.identity, record.invitation);
        self.note((Severity::Info, "worker-enrolled"), About::Coordinator, message, effects);
        Ok(record)
    }

    /// Has a worker's identity last longer.
    ///
    /// # Errors
    /// That it isn't known (any more), was revoked, or came with another key.
    pub fn renew_identity(
        &mut self,
        identity: &str,
        public_key: &blake3::Hash,
        valid: Duration,
        now: Now,
        effects: &mut Effects,
    ) -> Result<v1::IdentityRecord, Error> {
        let known = self.access.identities.get_mut(identity);
        let known = known.filter(|known| !known.revoked && is_digest(&known.public_key, public_key));
        let known = known.ok_or_else(|| Error::Revoked(printable(identity)))?;
        known.expires_unix_ms = now.unix_ms + valid.as_millis() as u64;
        let record = known.clone();
        effects.writes.push(Write::Identity(record.clone().into()));
        Ok(record)
    }

    /// Ends an invitation by its id, or an identity for good. An operator or viewer need not be known for that.
    ///
    /// # Errors
    /// That there is nothing of this id.
    pub fn revoke(&mut self, id: &str, by: &str, now: Now, effects: &mut Effects) -> Result<(), Error> {
        self.unix_ms = now.unix_ms;
        if let Some(invited) = self.access.invitations.get_mut(id) {
            invited.revoked = true;
            effects.writes.push(Write::Invitation(invited.clone().into()));
        } else {
            let unknown = || Error::UnknownIdentity(printable(id));
            let identity: Identity = id.parse().map_err(|_| unknown())?;
            let known = self.access.identities.get(id).cloned();
            let record = match (known, identity.role) {
                (Some(known), _) => v1::IdentityRecord { revoked: true, ..known },
                (None, Role::Worker) => return Err(unknown()),
                // The coordinator doesn't know whom its authority signed.
                (None, Role::Operator | Role::Viewer) => v1::IdentityRecord {
                    identity: id.to_owned(),
                    created_unix_ms: now.unix_ms,
                    revoked: true,
                    ..v1::IdentityRecord::default()
                },
            };
            effects.writes.push(Write::Identity(record.clone().into()));
            self.access.add_identity(record);
        }
        let message = format!("{} revoked {id}", printable(by));
        self.note((Severity::Warning, "revoked"), About::Coordinator, message, effects);
        Ok(())
    }

    /// Who was invited, the newest first.
    pub fn invitations(&self) -> Vec<v1::InvitationStatus> {
        let mut listed: Vec<v1::InvitationStatus> = self.access.invitations.values().map(invitation).collect();
        listed.sort_by_key(|invitation| std::cmp::Reverse(invitation.created_unix_ms));
        listed
    }

    /// Who came, and who was revoked.
    pub fn identities(&self) -> Vec<v1::IdentityStatus> {
        let listed = self.access.identities.values().map(|known| v1::IdentityStatus {
            identity: known.identity.clone(),
            invitation: known.invitation.clone(),
            name: known.name.clone(),
            created_unix_ms: known.created_unix_ms,
            expires_unix_ms: known.expires_unix_ms,
            revoked: known.revoked,
        });
        listed.collect()
    }

    /// The records of all identities.
    pub(crate) fn identity_records(&self) -> impl Iterator<Item = &v1::IdentityRecord> {
        self.access.identities.values()
    }

    /// Whether the worker joined with this identity. One that isn't known is nobody's; one of which nothing was written down, since
    /// it joined an earlier release, had the token file.
    pub fn is_of(&self, worker: &str, identity: &str) -> bool {
        let known = WorkerId::new(worker).ok().and_then(|id| self.workers.get(&id));
        let had_token = |worker: &super::Worker| worker.identity.is_empty() && identity == LOCAL;
        known.is_none_or(|worker| worker.identity == identity || had_token(worker))
    }

    /// Forgets what has long been over. Whoever is revoked stays so for as long as a certificate could last.
    pub(super) fn forget_access(&mut self, now: Now, effects: &mut Effects) {
        if now.monotonic < self.access.looked + LOOK {
            return;
        }
        self.access.looked = now.monotonic;
        let listed = LISTED.as_millis() as u64;
        self.access.invitations.retain(|id, invited| {
            let stays = invited.expires_unix_ms.saturating_add(listed) > now.unix_ms;
            if !stays {
                effects.writes.push(Write::ForgetInvitation(id.clone()));
            }
            stays
        });
        self.access.identities.retain(|id, known| {
            let stays = known.expires_unix_ms == 0 || known.expires_unix_ms > now.unix_ms;
            if !stays {
                effects.writes.push(Write::ForgetIdentity(id.clone()));
            }
            stays
        });
    }
}

fn is_digest(stored: &[u8], given: &blake3::Hash) -> bool {
    // Hashes compare in constant time.
    <[u8; 32]>::try_from(stored).is_ok_and(|stored| blake3::Hash::from(stored) == *given)
}

fn invitation(record: &v1::InvitationRecord) -> v1::InvitationStatus {
    v1::InvitationStatus {
        id: record.id.clone(),
        created_unix_ms: record.created_unix_ms,
        expires_unix_ms: record.expires_unix_ms,
        uses: record.uses,
        used: record.used,
        revoked: record.revoked,
        by: record.by.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Settings;
    use crate::store::Records;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(days: u64) -> Now {
        let passed = DAY * u32::try_from(days).expect("small");
        Now { monotonic: passed, unix_ms: passed.as_millis() as u64 }
    }

    fn state() -> State {
        let settings = Settings::new("test", Duration::from_secs(10));
        State::restore(settings, Records::default(), at(0)).expect("an empty one").0
    }

    fn enrolment(id: &str, key: &[u8]) -> Enrolment {
        Enrolment {
            id: id.into(),
            digest: blake3::hash(b"secret"),
            public_key: blake3::hash(key),
            name: "gpu-7\n".into(),
            secret: None,
            valid: 30 * DAY,
        }
    }

    fn invite(state: &mut State, uses: u32, now: Now) -> String {
        let invited = state.invite(blake3::hash(b"secret"), (uses, DAY), "alice", now, &mut Effects::default());
        invited.expect("invited").id
    }

    #[test]
    fn an_invitation_ends_and_is_forgotten_later() {
        let mut state = state();
        let mut effects = Effects::default();
        let id = invite(&mut state, 0, at(1));
        assert!(state.enrol(enrolment(&id, b"one"), at(1), &mut effects).is_ok());
        let over = state.enrol(enrolment(&id, b"two"), at(2), &mut effects).expect_err("a day is over");
        assert!(over.to_string().contains("is over"), "{over}");
        let none = state.enrol(enrolment("inv9-test", b"two"), at(1), &mut effects).expect_err("there is none");
        let wrong = Enrolment { digest: blake3::hash(b"guessed"), ..enrolment(&id, b"two") };
        let wrong = state.enrol(wrong, at(1), &mut effects).expect_err("a wrong secret");
        assert_eq!(none.to_string(), wrong.to_string(), "who guesses isn't told which part is wrong");

        state.forget_access(at(20), &mut effects);
        assert_eq!((state.invitations().len(), state.identities().len()), (1, 1));
        effects.writes.clear();
        state.forget_access(at(33), &mut effects);
        assert_eq!((state.invitations().len(), state.identities().len()), (0, 0));
        let forgotten = [Write::ForgetInvitation(id), Write::ForgetIdentity("worker:1-test".into())];
        assert_eq!(effects.writes, forgotten);
        for (uses, valid) in [(1, Duration::ZERO), (1, 400 * DAY)] {
            let made = state.invite(blake3::hash(b"secret"), (uses, valid), "alice", at(1), &mut effects);
            assert!(matches!(made, Err(Error::Invitation(_))));
        }
    }

    #[test]
    fn an_identity_is_renewed_by_who_has_its_key_until_it_is_revoked() {
        let mut state = state();
        let mut effects = Effects::default();
        let id = invite(&mut state, 1, at(1));
        let identity = state.enrol(enrolment(&id, b"one"), at(1), &mut effects).expect("enrolled");
        assert_eq!((identity.name.as_str(), identity.expires_unix_ms), ("gpu-7", at(31).unix_ms));
        let (key, other) = (blake3::hash(b"one"), blake3::hash(b"other"));
        let mut renew =
            |state: &mut State, key| state.renew_identity(&identity.identity, key, 30 * DAY, at(20), &mut effects);
        assert!(matches!(renew(&mut state, &other), Err(Error::Revoked(_))));
        assert_eq!(renew(&mut state, &key).expect("renewed").expires_unix_ms, at(50).unix_ms);
        state.revoke(&identity.identity, "alice", at(21), &mut Effects::default()).expect("revoked");
        assert!(matches!(renew(&mut state, &key), Err(Error::Revoked(_))));
        let again = state.enrol(enrolment(&id, b"one"), at(1), &mut Effects::default());
        assert!(matches!(again, Err(Error::InvitationOver(_))), "its key brings it back no more");
    }

    #[test]
    fn who_is_revoked_stays_so_through_a_restart() {
        let mut state = state();
        let mut effects = Effects::default();
        let id = invite(&mut state, 1, at(1));
        let identity = state.enrol(enrolment(&id, b"one"), at(1), &mut effects).expect("enrolled").identity;
        for id in [identity.as_str(), "operator:mallory", id.as_str()] {
            state.revoke(id, "alice", at(2), &mut effects).expect("revoked");
        }
        assert!(matches!(state.revoke("worker:7-test", "alice", at(2), &mut effects), Err(Error::UnknownIdentity(_))));
        assert!(matches!(state.revoke("mallory", "alice", at(2), &mut effects), Err(Error::UnknownIdentity(_))));
        let mut records = Records::default();
        let mut export = crate::schedule::Export::default();
        while let Some(writes) = state.export(&mut export) {
            for write in writes {
                match write {
                    Write::Invitation(record) => records.invitations.push(*record),
                    Write::Identity(record) => records.identities.push(*record),
                    Write::Meta(meta) => records.meta = meta,
                    _ => {}
                }
            }
        }
        let settings = Settings::new("test", Duration::from_secs(10));
        let (mut again, _) = State::restore(settings, records, at(3)).expect("restored");
        assert_eq!((again.invitations(), again.identities()), (state.invitations(), state.identities()));
        assert!(again.identities().iter().all(|identity| identity.revoked) && again.identities().len() == 2);
        assert_ne!(invite(&mut again, 1, at(3)), id, "numbers go on");
    }

    #[test]
    fn a_worker_of_an_earlier_release_is_whose_token_it_had() {
        let mut state = state();
        let mut effects = Effects::default();
        let mut join = |identity| {
            state.join_as(identity, v1::JoinRequest::default(), at(1), &mut effects).expect("joins").to_string()
        };
        let [before, local, worker] = ["", LOCAL, "worker:1-test"].map(&mut join);
        assert!(state.is_of(&before, LOCAL) && !state.is_of(&before, "worker:1-test"));
        assert!(state.is_of(&local, LOCAL) && !state.is_of(&local, "worker:1-test"));
        assert!(
            state.is_of(&worker, "worker:1-test")
                && !state.is_of(&worker, LOCAL)
                && !state.is_of(&worker, "worker:2-test")
        );
    }
}
