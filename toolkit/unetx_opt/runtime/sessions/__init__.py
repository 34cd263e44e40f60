"""One module per engine, one table that names them all."""
