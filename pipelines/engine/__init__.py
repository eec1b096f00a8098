"""What a pipeline does to a batch: pure functions over Arrow tables, with DuckDB in memory as the only tool."""
