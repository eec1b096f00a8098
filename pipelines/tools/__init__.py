"""Tools for those who write pipelines: cases in virtual time, the canonical form, the editors' schema, explanations. Pure."""
