"""Functions of a database that write to app_item, unseen by whoever reads statements."""

ADD_ITEM = """
    CREATE FUNCTION add_item(x text) RETURNS bigint LANGUAGE sql AS
    $$ INSERT INTO public.app_item (name) VALUES (x) RETURNING id $$;
"""
LOG_ITEM = """
    CREATE FUNCTION log_item() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO app_item (name) VALUES ('logged'); RETURN coalesce(NEW, OLD); END $$;
"""
