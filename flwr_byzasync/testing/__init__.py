"""Conformance kit: the checks of this package's rules, for anybody's rule; see docs/testing.md."""
