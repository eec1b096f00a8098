"""The only home of types that both planes share."""
