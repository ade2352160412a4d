"""Forms of rows: each turns published or own rows into tasks."""
