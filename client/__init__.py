"""One region's side: its data, its training, its index. Never imports `server`."""
