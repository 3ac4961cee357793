from django.contrib import admin

from shop.models import Category, Order, OrderLine, Product, Tag

admin.site.register([Category, Order, OrderLine, Product, Tag])
