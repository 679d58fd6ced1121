"""The machine for programs and the browser, over HTTP: it reads, and changes nothing."""
