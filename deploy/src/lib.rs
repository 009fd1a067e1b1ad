//! Nothing: the package is there for its tests, which read what lies in this folder as those read it for whom it is meant.
