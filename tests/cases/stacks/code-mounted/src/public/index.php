<?php require "../index.php";
