"""Mean-field inference in the fully connected CRF of Krähenbühl & Koltun 2011."""
