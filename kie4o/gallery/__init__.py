"""The page that shows the images of a folder, and what it is made of.

`results.jsonl` says what became of each request (`records`), the folder has the images (`folder`), small
copies of them are made in threads (`thumbnails`), and `page` writes `index.html`. `selection` copies the
favourites that a person marked in it. Nothing here talks to Kie.
"""
