from __future__ import annotations

from django.db import models


class Tag(models.Model):
    name = models.TextField()


class Product(models.Model):
    name = models.TextField()
    main = models.ForeignKey(Tag, models.CASCADE, null=True, related_name="+")
    tags = models.ManyToManyField(Tag)


class Price(models.Model):
    product = models.ForeignKey(Product, models.CASCADE)
    amount = models.IntegerField(null=True)
