"""From the lines of a batch to typed records that keep the schema, or the reasons why not."""
