"""Where pairs come from: each source yields a `Sample`, or says why something is none, in bounded memory."""
