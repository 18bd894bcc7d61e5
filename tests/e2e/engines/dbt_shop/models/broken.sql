{{ config(enabled=env_var('SHOP_BROKEN', '') != '') }}
select no_such_column from {{ ref('customers') }}
