"""Video files in and out, frame-exactly. `io` is the door; everything that touches PyAV lives in this folder."""
