"""visavis: a live voice and one photo become a talking head."""
