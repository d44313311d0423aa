"""The page of `crate-hour`."""

report = None
