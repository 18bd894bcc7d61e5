{{ config(enabled=env_var('SHOP_BROKEN', '') != '') }}
select count(*) as n from {{ ref('broken') }}
