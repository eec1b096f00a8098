"""Event-time windows: mergeable parts in cells, of panes or sessions, and rows when they close."""
