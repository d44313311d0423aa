"""What `crate-hour` judges."""

CLAIMS = ()
