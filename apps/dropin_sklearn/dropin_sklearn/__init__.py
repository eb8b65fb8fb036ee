"""A scikit-learn app for Flower: logistic regression on handwritten digits, NumPy arrays sent."""
