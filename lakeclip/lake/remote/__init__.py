"""Remote lakes: whole chunks are fetched once per machine, cached on disk, and waited for while a server is down."""
