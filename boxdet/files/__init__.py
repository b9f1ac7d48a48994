"""Files in and out: pickles without code, JSON whose errors have a place, files replaced whole, downloads made once."""
