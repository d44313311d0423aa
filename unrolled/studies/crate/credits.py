"""The authors of pictures that pages show."""

PHOTOS = "scikit-learn's two sample photos (CC BY 2.0, danielbuechele and vultilion on Flickr)"
